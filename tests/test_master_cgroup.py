"""The default worker count, read from files laid out as the kernel lays them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastside.cgroup import cpu_quota, default_workers


class Machine:
    """A /proc and cgroup mounts under a temporary directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = root / "proc"
        (self.proc / "self").mkdir(parents=True)
        self.own("0::/")

    def own(self, *lines: str) -> None:
        (self.proc / "self/cgroup").write_text("".join(line + "\n" for line in lines))

    def mount(self, name: str, kind: str, options: str, root: str = "/") -> Path:
        point = self.root / name
        point.mkdir(exist_ok=True)
        escaped = str(point).replace(" ", "\\040")
        with open(self.proc / "self/mountinfo", "a") as table:
            table.write(f"31 23 0:28 {root} {escaped} rw,relatime shared:9 - {kind} {kind} {options}\n")
        return point

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_version_2_takes_the_smallest_quota_on_the_way_up(machine):
    point = machine.mount("unified", "cgroup2", "rw")
    machine.own("0::/pod/app")
    machine.write(point / "pod/app/cpu.max", "max 100000")
    machine.write(point / "pod/cpu.max", "150000 100000")
    assert cpu_quota(machine.proc) == 1.5
    machine.write(point / "pod/app/cpu.max", "50000 100000")
    assert cpu_quota(machine.proc) == 0.5


def test_version_1_quota(machine):
    point = machine.mount("cpu", "cgroup", "rw,cpu,cpuacct")
    machine.mount("memory", "cgroup", "rw,memory")
    machine.own("4:memory:/x", "3:cpu,cpuacct:/pod", "0::/")
    machine.write(point / "pod/cpu.cfs_quota_us", "-1")
    machine.write(point / "pod/cpu.cfs_period_us", "100000")
    assert cpu_quota(machine.proc) is None
    machine.write(point / "pod/cpu.cfs_quota_us", "400000")
    assert cpu_quota(machine.proc) == 4.0


def test_a_mount_that_shows_only_the_container_s_own_group(machine):
    point = machine.mount("cpu", "cgroup", "rw,cpu", root="/docker/abc")
    machine.own("3:cpu:/docker/abc")
    machine.write(point / "cpu.cfs_quota_us", "200000")
    machine.write(point / "cpu.cfs_period_us", "100000")
    assert cpu_quota(machine.proc) == 2.0


def test_a_mount_point_with_a_space(machine):
    point = machine.mount("c group", "cgroup2", "rw")
    machine.write(point / "cpu.max", "300000 100000")
    assert cpu_quota(machine.proc) == 3.0


def test_no_cgroups_at_all(tmp_path):
    assert cpu_quota(tmp_path) is None
    count, reason = default_workers(tmp_path)
    affinity = len(os.sched_getaffinity(0))
    assert count == min(2, affinity)
    assert reason == f"no cgroup quota, affinity {affinity}, at most 2 unless asked"


@pytest.mark.parametrize(("quota", "most"), [("20000 100000", 1), ("110000 100000", 2), ("800000 100000", 2)])
def test_a_quota_is_rounded_up_and_bounded(machine, quota, most):
    point = machine.mount("unified", "cgroup2", "rw")
    machine.write(point / "cpu.max", quota)
    count, reason = default_workers(machine.proc)
    assert count == min(most, len(os.sched_getaffinity(0)))
    assert f"cgroup quota {int(quota.split()[0]) / 100000:.1f} CPUs" in reason
