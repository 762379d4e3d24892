"""Memory on an NVIDIA device and one stream of work, through the driver's own library: no package is needed for it.

Source: CUDA Driver API reference, "Memory Management" and "Stream Management". Everything here happens in the primary
context of the device, which CUDA's runtime, and so TensorRT, uses too.
"""

import ctypes
from typing import Any

import numpy as np

from seatrial.cuda import Driver
from seatrial.tensors import Array


class Stream:
    """Work on the first device, in order. `copy_in` and `copy_out` only queue the copy; `wait` is when it is done."""

    def __init__(self) -> None:
        """Raises `NoDevice`, or `RuntimeError` where the driver refuses."""
        self.driver = Driver()
        self._device, self._context, self.handle = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self.driver("cuDeviceGet", ctypes.byref(self._device), 0)
        self.driver("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self.enter()
        self.driver("cuStreamCreate", ctypes.byref(self.handle), 0)

    def enter(self) -> None:
        """Before a thread works with it: each has a context of its own, and none at first."""
        self.driver("cuCtxSetCurrent", self._context)

    def copy_in(self, array: Array, buffer: "Buffer") -> None:
        """`array` must stay as it is until `wait`."""
        self.driver("cuMemcpyHtoDAsync_v2", buffer.address, _host(array), ctypes.c_size_t(array.nbytes), self.handle)

    def copy_out(self, buffer: "Buffer", array: Array) -> None:
        self.driver("cuMemcpyDtoHAsync_v2", _host(array), buffer.address, ctypes.c_size_t(array.nbytes), self.handle)

    def wait(self) -> None:
        self.driver("cuStreamSynchronize", self.handle)

    def close(self) -> None:
        self.driver("cuStreamDestroy_v2", self.handle)
        self.driver("cuDevicePrimaryCtxRelease_v2", self._device)


class Buffer:
    """Grows, never shrinks: what a shape once needed will be needed again."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.address = ctypes.c_uint64()
        self._size = 0

    def reserve(self, size: int) -> None:
        if size > self._size:
            self.close()
            self._driver("cuMemAlloc_v2", ctypes.byref(self.address), ctypes.c_size_t(size))
            self._size = size

    def close(self) -> None:
        if self._size:
            self._driver("cuMemFree_v2", self.address)
            self._size = 0


def _host(array: Array) -> Any:
    assert array.flags.c_contiguous, "a copy of what does not lie in a row: this is a bug"
    return ctypes.c_void_p(np.asarray(array).ctypes.data)
