from pathlib import Path

import pytest

from seatrial.machine import cores, free_memory_bytes, memory_bytes, this_machine

GIB = 2**30


def kernel(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 8388608 kB\n", **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.fixture(autouse=True)
def _sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 16), ("150000 100000", 2), ("50000 100000", 1)])
def test_a_quota_of_cgroup_v2_cuts_the_cores(tmp_path: Path, quota: str, expected: int) -> None:
    files = {"proc/self/cgroup": "0::/pod/app\n", "sys/fs/cgroup/pod/app/cpu.max": quota}
    assert cores(kernel(tmp_path, files)) == expected


def test_the_tightest_of_our_cgroup_and_its_parents_counts(tmp_path: Path) -> None:
    root = kernel(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/app\n",
            "sys/fs/cgroup/pod/app/cpu.max": "max 100000",
            "sys/fs/cgroup/pod/cpu.max": "300000 100000",
            "sys/fs/cgroup/pod/app/memory.max": "max",
            "sys/fs/cgroup/pod/memory.max": str(2 * GIB),
        },
    )
    assert cores(root) == 3
    assert memory_bytes(root) == 2 * GIB


def test_cgroup_v1_is_read_too(tmp_path: Path) -> None:
    root = kernel(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/pod\n3:cpu,cpuacct:/pod\n1:name=systemd:/\n",
            "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "400000",
            "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": str(GIB),
        },
    )
    assert cores(root) == 4
    assert memory_bytes(root) == GIB


def test_in_a_container_the_mount_point_holds_the_limits(tmp_path: Path) -> None:
    """`/proc/self/cgroup` names a path of the host, which is not mounted here."""
    root = kernel(
        tmp_path,
        {"proc/self/cgroup": "0::/kubepods/burstable/pod1/c2\n", "sys/fs/cgroup/cpu.max": "200000 100000"},
    )
    assert cores(root) == 2


def test_without_cgroups_the_affinity_and_the_physical_memory_count(tmp_path: Path) -> None:
    root = kernel(tmp_path, {})
    assert cores(root) == 16
    assert memory_bytes(root) == 8 * GIB


AVAILABLE = "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n"


def test_what_is_left_of_the_machine_s_memory_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    assert free_memory_bytes(kernel(tmp_path, {"proc/meminfo": AVAILABLE})) == 4 * GIB


@pytest.mark.parametrize(("used", "left"), [(GIB, 1.5 * GIB), (3 * GIB, 0)])
def test_what_is_left_of_a_cgroup_counts_the_cache_that_can_be_dropped(tmp_path: Path, used: int, left: int) -> None:
    pod = "sys/fs/cgroup/pod"
    files = {
        "proc/meminfo": AVAILABLE,
        "proc/self/cgroup": "0::/pod/app\n",
        f"{pod}/app/memory.max": "max",
        f"{pod}/memory.max": str(2 * GIB),
        f"{pod}/memory.current": str(used),
        f"{pod}/memory.stat": f"anon 1\ninactive_file {GIB // 2}\nactive_file 7",
    }
    assert free_memory_bytes(kernel(tmp_path, files)) == left


def test_what_is_left_of_a_cgroup_of_v1(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": AVAILABLE,
        "proc/self/cgroup": "4:memory:/pod\n",
        "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": str(3 * GIB),
        "sys/fs/cgroup/memory/pod/memory.usage_in_bytes": str(2 * GIB),
        "sys/fs/cgroup/memory/pod/memory.stat": "inactive_file 5\ntotal_inactive_file 100",
    }
    assert free_memory_bytes(kernel(tmp_path, files)) == GIB + 100


def test_this_machine_is_described() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_bytes > 0
    assert 0 < free_memory_bytes() <= machine.memory_bytes
    assert machine.cpu
