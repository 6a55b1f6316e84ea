"""The resources of this machine: memory available to the process, and processors that it may use."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_UNLIMITED = 1 << 60
"""A limit of control groups at or above it is none."""


def available_memory(device: torch.device | None = None, root: Path = Path("/")) -> int | None:
    """Bytes that this process may still allocate; None if the system does not report it.

    On a CPU the minimum of the kernel's available memory (/proc/meminfo) and the memory left by the limits of the
    process's control groups, counting pages of files as free: they are reclaimable. On a CUDA device its free memory.
    """
    if device is not None and device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free)
    found = [_of_the_kernel(root), *_of_control_groups(root)]
    known = [size for size in found if size is not None]
    return min(known) if known else None


def processors() -> int:
    """Processors that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        found = os.cpu_count()
        return 1 if found is None else found


def in_words(size: int) -> str:
    """Bytes in readable form.

    >>> in_words(300 << 10), in_words(3 << 20), in_words(5 << 29)
    ('300 KiB', '3 MiB', '2.5 GiB')
    """
    if size < 2**20:
        return f"{size / 2**10:.0f} KiB"
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


def _of_the_kernel(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _of_control_groups(root: Path) -> list[int]:
    """Memory left in each control group from the process's own up to the root, in both versions of the interface."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left: list[int] = []
    for line in lines:
        _number, controllers, place = line.split(":", 2)
        if controllers == "":
            mounted, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mounted = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the path may be that of a host's group, which is not visible here: its root is the container's.
        folder = mounted / place.strip("/")
        while True:
            size = _left_in(folder, *names)
            if size is not None:
                left.append(size)
            if folder == mounted or mounted not in folder.parents:
                break
            folder = folder.parent
    return left


def _left_in(folder: Path, limit_name: str, usage_name: str, files_name: str) -> int | None:
    try:
        limit = (folder / limit_name).read_text().strip()
        usage = int((folder / usage_name).read_text())
        table = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max" or int(limit) >= _UNLIMITED:
        return None
    return max(0, int(limit) - max(0, usage - int(table.get(files_name, 0))))
