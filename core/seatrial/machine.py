"""What this machine gives to this process: cores and memory by cgroup quota, CPU features, GPUs.

Reads the kernel's own files; takes no library's word for it. Containers are the normal case: the number of cores of
the host is not the number that we may use. Sources: the kernel's cgroup-v1 and cgroup-v2 documentation.
"""

import math
import os
import platform
import shutil
import subprocess
from pathlib import Path

import msgspec

TELLING_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
)
"""The CPU features that decide which kernels an engine picks, hence how INT8 sums saturate and round."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    cpu: str
    cores: int
    features: tuple[str, ...]
    memory_bytes: int
    gpus: tuple[str, ...] = ()


def this_machine(root: Path = Path("/")) -> Machine:
    """`root` is where the kernel's `proc` and `sys` are mounted."""
    info = _cpu_info(root)
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return Machine(
        cpu=info.get("model name") or platform.machine(),
        cores=cores(root),
        features=tuple(name for name in TELLING_FEATURES if name in flags),
        memory_bytes=memory_bytes(root),
        gpus=gpus(),
    )


def cores(root: Path = Path("/")) -> int:
    """Whole cores that we may keep busy: the affinity mask, cut by the CFS quota, never less than one."""
    allowed = len(os.sched_getaffinity(0))
    quota = min((quota for quota in map(_cpu_quota, _cgroup_directories(root)) if quota), default=math.inf)
    return max(1, min(allowed, math.ceil(quota))) if math.isfinite(quota) else allowed


def memory_bytes(root: Path = Path("/")) -> int:
    """Memory that we may use before the kernel kills us: the tightest limit of our cgroup and its parents."""
    limits = [limit for directory in _cgroup_directories(root) if (limit := _memory_limit(directory))]
    return min([_physical_memory(root), *limits])


def free_memory_bytes(root: Path = Path("/")) -> int:
    """Memory that may still be taken before the kernel kills somebody: what is left of the machine's, of our cgroup's and of
    its parents'. The page cache that can be dropped counts as left."""
    left = [_limit_left(directory) for directory in _cgroup_directories(root)]
    return max(0, min([_available_memory(root), *(each for each in left if each is not None)]))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, shared pages included; 0 if it has just ended."""
    text = _read(Path(f"/proc/{pid}/statm"))
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") if text else 0


def private_bytes(pid: int) -> int:
    """Memory that is given back when the process ends: its resident pages that it shares with nobody; 0 if it has ended."""
    return _rollup_bytes(pid, "Private_Clean:", "Private_Dirty:")


def tree_bytes(pid: int) -> int:
    """Resident memory of a process and all that it started, a page that several of them share counted once."""
    return sum(_rollup_bytes(each, "Pss:") for each in (pid, *_descendants(pid)))


def anonymous_bytes(pid: int) -> int:
    """Resident memory of a process and all that it started, of pages that no file is behind."""
    statuses = ((_read(Path(f"/proc/{each}/status")) or "").splitlines() for each in (pid, *_descendants(pid)))
    return sum(int(line.split()[1]) * 1024 for lines in statuses for line in lines if line.startswith("RssAnon:"))


def gpus() -> tuple[str, ...]:
    """The names of NVIDIA GPUs with their driver, as `nvidia-smi` tells them; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ()
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip
    return tuple(asked.stdout.strip().splitlines()) if asked.returncode == 0 else ()


def _rollup_bytes(pid: int, *names: str) -> int:
    lines = (line.split() for line in (_read(Path(f"/proc/{pid}/smaps_rollup")) or "").splitlines())
    return 1024 * sum(int(words[1]) for words in lines if words[0] in names)


def _descendants(pid: int) -> list[int]:
    """Those that have ended meanwhile may be left out."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
    children = [int(child) for thread in threads for child in (_read(thread / "children") or "").split()]
    return [*children, *(below for child in children for below in _descendants(child))]


def _cpu_info(root: Path) -> dict[str, str]:
    text = _read(root / "proc/cpuinfo")
    first_core = (text or "").split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first_core.splitlines())}


def _physical_memory(root: Path) -> int:
    return _memory_info(root, "MemTotal") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _available_memory(root: Path) -> int:
    available = _memory_info(root, "MemAvailable")
    return _physical_memory(root) if available is None else available


def _memory_info(root: Path, name: str) -> int | None:
    """A line of `/proc/meminfo`, in bytes."""
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_directories(root: Path) -> list[Path]:
    """Our cgroup and its parents, in every hierarchy that limits CPU or memory.

    In a container `/proc/self/cgroup` may name a path of the host that is not mounted: then its parents, up to the
    mount point, are what is visible, and they hold our limits.
    """
    found = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup"
        for controller in controllers.split(",") if controllers else [""]:
            if controller in ("", "cpu", "cpuacct", "memory"):
                base = mount / controller
                leaf = Path(path.lstrip("/"))
                found += [base / part for part in (leaf, *leaf.parents)]
    return [directory for directory in dict.fromkeys(found) if directory.is_dir()]


def _cpu_quota(directory: Path) -> float | None:
    if text := _read(directory / "cpu.max"):
        quota, period = text.split()
    else:
        quota, period = _read(directory / "cpu.cfs_quota_us") or "max", _read(directory / "cpu.cfs_period_us") or "0"
    if quota.strip() in ("max", "-1") or int(period) <= 0:
        return None
    return int(quota) / int(period)


def _memory_limit(directory: Path) -> int | None:
    text = (_read(directory / "memory.max") or _read(directory / "memory.limit_in_bytes") or "max").strip()
    return None if text == "max" else int(text)


def _limit_left(directory: Path) -> int | None:
    """What a cgroup may still take, None where it has no limit or does not say."""
    limit = _memory_limit(directory)
    used = _read(directory / "memory.current") or _read(directory / "memory.usage_in_bytes")
    if limit is None or used is None:
        return None
    statistics = dict(line.split() for line in (_read(directory / "memory.stat") or "").splitlines())
    droppable = int(statistics.get("total_inactive_file") or statistics.get("inactive_file") or 0)
    return limit - int(used) + droppable


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
