from pathlib import Path

import pytest

from seatrial.machine import cores, memory_bytes, this_machine

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


def test_this_machine_is_described() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_bytes > 0
    assert machine.cpu
