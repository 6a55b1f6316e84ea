"""What the system says of its memory: the least of what the kernel and every group around the process leave."""

from __future__ import annotations

from pathlib import Path

from dpzo.forecast import available_memory, in_words, processors

GIB = 1 << 30


def write(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def meminfo(available: int) -> str:
    return f"MemTotal:       99999999 kB\nMemFree:              12 kB\nMemAvailable:   {available // 1024} kB"


def test_the_kernel_alone(tmp_path: Path) -> None:
    assert available_memory(root=write(tmp_path, {"proc/meminfo": meminfo(7 * GIB)})) == 7 * GIB


def test_a_group_of_version_two_counts_files_as_free(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/meminfo": meminfo(64 * GIB),
            "proc/self/cgroup": "0::/user/job",
            "sys/fs/cgroup/user/memory.max": "max",
            "sys/fs/cgroup/user/memory.current": GIB,
            "sys/fs/cgroup/user/memory.stat": "inactive_file 0",
            "sys/fs/cgroup/user/job/memory.max": 8 * GIB,
            "sys/fs/cgroup/user/job/memory.current": 5 * GIB,
            "sys/fs/cgroup/user/job/memory.stat": f"anon 3\ninactive_file {2 * GIB}",
        },
    )
    assert available_memory(root=root) == 5 * GIB
    write(root, {"sys/fs/cgroup/user/memory.max": 3 * GIB})  # a group further out leaves less
    assert available_memory(root=root) == 2 * GIB


def test_a_group_of_version_one(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/meminfo": meminfo(64 * GIB),
            "proc/self/cgroup": "4:cpu,cpuacct:/x\n3:memory:/docker/abc",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 4 * GIB,  # inside a container the path is not to be seen
            "sys/fs/cgroup/memory/memory.usage_in_bytes": GIB,
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0",
        },
    )
    assert available_memory(root=root) == 3 * GIB
    write(root, {"sys/fs/cgroup/memory/memory.limit_in_bytes": 2**63 - 4096})
    assert available_memory(root=root) == 64 * GIB


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert available_memory(root=tmp_path) is None
    strange = write(tmp_path, {"proc/meminfo": "nothing", "proc/self/cgroup": "0::/a"})
    assert available_memory(root=strange) is None


def test_this_machine() -> None:
    free = available_memory()
    assert free is None or free > 1 << 20
    assert processors() >= 1
    assert in_words(10 * GIB) == "10.0 GiB"
