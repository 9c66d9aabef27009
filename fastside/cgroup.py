"""How many CPUs this process may use, and the worker count that follows.

Sources: proc_pid_mountinfo(5), cgroups(7), the kernel's Documentation/admin-guide/cgroup-v2.rst (cpu.max) and
Documentation/scheduler/sched-bwc.rst (cpu.cfs_quota_us).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

DEFAULT_LIMIT = 2
"""Workers started by default at most: every worker has upstream pools of its own, so fewer workers reuse more."""


def cpu_quota(proc: Path = Path("/proc")) -> float | None:
    """The CPU quota in CPUs, or None when there is none.

    A group's quota binds all groups below it, so the smallest one from this process's group up to the top of the mount
    counts. Version 2 and version 1 hierarchies are read; what cannot be read is taken as no quota.
    """
    return min((quota for group in _groups(proc) if (quota := _group_quota(group)) is not None), default=None)


def default_workers(proc: Path = Path("/proc")) -> tuple[int, str]:
    """The worker count for ``workers: auto`` and the reason for it, in words."""
    quota = cpu_quota(proc)
    affinity = len(os.sched_getaffinity(0))
    count = max(1, min(DEFAULT_LIMIT, affinity, math.ceil(quota) if quota is not None else affinity))
    quota_text = "no cgroup quota" if quota is None else f"cgroup quota {quota:.1f} CPUs"
    return count, f"{quota_text}, affinity {affinity}, at most {DEFAULT_LIMIT} unless asked"


def _groups(proc: Path) -> Iterator[Path]:
    """Directories of this process's CPU groups, each followed by its ancestors as far as they are mounted."""
    own = _own_groups(proc)
    for root, mount, controllers in _mounts(proc):
        path = own.get(controllers)
        if path is None:
            continue
        below = os.path.relpath(path, root)  # the mount shows the hierarchy from `root` on
        group = mount if below.startswith("..") else mount / below
        yield from (group, *(parent for parent in group.parents if parent.is_relative_to(mount)))


def _own_groups(proc: Path) -> dict[str, str]:
    """Path of this process's group by controller: "" for version 2, "cpu" for version 1."""
    own = {}
    for line in _lines(proc / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            own[""] = path
        elif "cpu" in controllers.split(","):
            own["cpu"] = path
    return own


def _mounts(proc: Path) -> Iterator[tuple[str, Path, str]]:
    """Mounted cgroup hierarchies that concern CPU time: (root within the hierarchy, mount point, controller)."""
    for line in _lines(proc / "self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        root, mount = (_unescape(field) for field in fields.split()[3:5])
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup2":
            yield root, Path(mount), ""
        elif kind == "cgroup" and "cpu" in options.split(","):
            yield root, Path(mount), "cpu"


def _group_quota(group: Path) -> float | None:
    for quota_text, period_text in (_cpu_max(group), _cfs_quota(group)):
        try:
            quota, period = int(quota_text), int(period_text)
        except ValueError:
            continue  # "max", or no such file
        if quota > 0 and period > 0:
            return quota / period
    return None


def _cpu_max(group: Path) -> tuple[str, str]:
    words = " ".join(_lines(group / "cpu.max")).split()
    return (words[0], words[1]) if len(words) == 2 else ("", "")


def _cfs_quota(group: Path) -> tuple[str, str]:
    return "".join(_lines(group / "cpu.cfs_quota_us")), "".join(_lines(group / "cpu.cfs_period_us"))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescape(field: str) -> str:
    """Undoes mountinfo's octal escapes of space, tab, newline and backslash."""
    for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(escaped, plain)
    return field
