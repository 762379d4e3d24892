"""The NVIDIA devices that this process may use, asked of the driver's own library, which every program on a GPU uses.

Needs no package and no `nvidia-smi`: a container may have the one without the other. Source: CUDA Driver API reference,
"Device Management".
"""

import ctypes
from dataclasses import dataclass

from seatrial.errors import EngineUnavailable

LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR"""
_NAME_BYTES = 128


class NoDevice(EngineUnavailable):
    """The message says why, in a clause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    name: str
    capability: tuple[int, int]
    memory_bytes: int

    @property
    def fingerprint(self) -> str:
        """What machine code for it is bound to, as one word: `NVIDIA-H200/sm_90`."""
        major, minor = self.capability
        return f"{'-'.join(self.name.split())}/sm_{major}{minor}"


class Driver:
    """The library, initialized. Raises `NoDevice` where there is none, or none that we may use."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError:
            raise NoDevice(f"no NVIDIA driver is installed ({LIBRARY} is not found)") from None
        if code := self._library.cuInit(0):
            raise NoDevice(f"no NVIDIA device is visible to this process (cuInit says {code})")

    def __call__(self, function: str, *arguments: object) -> None:
        """Call it. Raises `RuntimeError` with the code that it answers, where that is not success."""
        if code := getattr(self._library, function)(*arguments):
            raise RuntimeError(f"{function} answered {code}")

    def devices(self) -> tuple[Device, ...]:
        count = ctypes.c_int()
        self("cuDeviceGetCount", ctypes.byref(count))
        return tuple(map(self._device, range(count.value)))

    def _device(self, number: int) -> Device:
        handle, name, memory = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
        self("cuDeviceGet", ctypes.byref(handle), number)
        self("cuDeviceGetName", name, _NAME_BYTES, handle)
        self("cuDeviceTotalMem_v2", ctypes.byref(memory), handle)
        return Device(
            name=name.value.decode(errors="replace"),
            capability=(self._attribute(_MAJOR, handle), self._attribute(_MINOR, handle)),
            memory_bytes=memory.value,
        )

    def _attribute(self, number: int, handle: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self("cuDeviceGetAttribute", ctypes.byref(value), number, handle)
        return value.value


def first_device() -> Device:
    """The device that an engine process uses. Raises `NoDevice`."""
    try:
        devices = Driver().devices()
    except RuntimeError as error:
        raise NoDevice(f"the NVIDIA driver does not answer: {error}") from error
    if not devices:
        raise NoDevice("no NVIDIA device is visible to this process")
    return devices[0]
