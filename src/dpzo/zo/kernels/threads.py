"""A range of elements over torch's number of threads.

The kernels let go of the interpreter lock, and every element is addressed, so any split gives the same bits. The pool
is ours and not numba's: numba's own layers are either not safe to enter from two threads or spin while torch works.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_ALIGNMENT = 4096
_pool: ThreadPoolExecutor | None = None


def _forget() -> None:
    """A forked child has the pool's object and none of its threads."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget)


def split(count: int, least: int, work: Callable[[int, int], None]) -> None:
    """Call work(start, stop) on parts of 0 … count that together are all of it, a part a thread, none under `least`.

    `least` is what one thread should do before a second one pays: waking it takes some 30 µs.
    """
    global _pool
    parts = min(torch.get_num_threads(), count // least)
    if parts <= 1:
        work(0, count)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="dpzo-kernels")
    bounds = [count * part // parts // _ALIGNMENT * _ALIGNMENT for part in range(parts)] + [count]
    waiting = [_pool.submit(work, bounds[part], bounds[part + 1]) for part in range(1, parts)]
    try:
        work(0, bounds[1])
    finally:
        for future in waiting:
            future.result()
