"""Run a kernel over a range of elements on torch's own threads.

Torch's OpenMP workers spin for a while after every operation. A separate pool would compete with them for the same
cores (a step of small batches took half as long again), so a kernel runs on torch's team of threads through
`GOMP_parallel`, which GNU's and LLVM's OpenMP both export. If no such library is loaded, a plain thread pool is used.
Elements are addressed, so any split gives the same bits.
"""

from __future__ import annotations

import ctypes
import math
import os
import struct
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from dpzo.zo.kernels.blocks_cpu import Floats, jit

Region = Callable[[Any], None]
"""A compiled function of a job's address; every thread of the team runs it."""
Job = NDArray[np.int64]

_ALIGNMENT = 4096
_OWN_NUMBER, _TEAM_SIZE, _COUNT, _BEGIN, _END = range(5)
FIRST = 5
"""Where a region's own numbers begin in its job."""
LENGTH = 24
_Numbers: Any = ctypes.c_int64 * LENGTH


@dataclass(frozen=True)
class Compiled:
    """A region in machine code: as a Python function, which releases the interpreter lock, and its address."""

    call: Any
    address: int


def region(function: Region) -> Compiled:
    """Compile a region; its one argument is the job's address."""
    options: dict[str, Any] = {"nopython": True, "error_model": "numpy"}
    try:
        compiled: Any = numba.cfunc("void(voidptr)", cache=True, **options)(function)
    except RuntimeError:
        compiled = numba.cfunc("void(voidptr)", **options)(function)
    return Compiled(compiled.ctypes, compiled.address)


def _pointer(_context: Any, _address: Any) -> Any:
    """Interpret an int64 as an address."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


pointer: Any = intrinsic(_pointer)


def _ask(_context: Any, _address: Any) -> Any:
    """The return value of the C function `int f(void)` at an address."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        function = ir.FunctionType(ir.IntType(32), [])
        return builder.call(builder.inttoptr(arguments[0], function.as_pointer()), [])

    return types.int32(types.int64), generate


_asked: Any = intrinsic(_ask)


memory: Any = getattr(numba, "carray")  # noqa: B009 - numba does not export it by name
"""An array over memory that something else owns."""


@jit
def bounds(job: Job) -> tuple[int, int]:
    """(begin, end) of the elements that the calling thread works on."""
    if job[_OWN_NUMBER] == 0:
        return job[_BEGIN], job[_END]
    own, team = _asked(job[_OWN_NUMBER]), _asked(job[_TEAM_SIZE])
    count = job[_COUNT]
    begin = count * own // team // _ALIGNMENT * _ALIGNMENT
    end = count if own == team - 1 else count * (own + 1) // team // _ALIGNMENT * _ALIGNMENT
    return begin, end


@jit
def number(bits: int) -> np.float32:
    """The fp32 number of these 32 bits."""
    return np.uint32(bits).view(np.float32)


def bits(value: float) -> int:
    """The bits of fl32(value), for a job."""
    try:
        packed = struct.pack("=f", value)  # takes a tenth of NumPy's time for one number
    except OverflowError:
        packed = struct.pack("=f", math.copysign(math.inf, value))
    return int.from_bytes(packed, sys.byteorder)


def floats(tensor: torch.Tensor) -> Floats:
    """A tensor's own memory as a NumPy array: no copy, no version bump."""
    return cast(Floats, tensor.detach().numpy())


@dataclass(frozen=True)
class _OpenMP:
    """`run` is GOMP_parallel(region, job, threads, 0); the others are addresses of C functions `int f(void)`."""

    run: Any
    own_number: int
    team_size: int


def _address_of(function: Any) -> int:
    found = ctypes.cast(function, ctypes.c_void_p).value
    assert found is not None
    return found


@cache
def _openmp() -> _OpenMP | None:
    """The OpenMP library that torch runs on; None if there is none that can be used."""
    try:
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    except OSError:
        return None
    names = ("libgomp", "libiomp5", "libomp")
    found = [path for path in mapped if Path(path).name.startswith(names)]
    home = str(Path(torch.__file__).parent.parent)
    for path in sorted(found, key=lambda path: (not path.startswith(home), path)):
        library = ctypes.CDLL(path)
        if hasattr(library, "GOMP_parallel"):
            run = library.GOMP_parallel
            run.argtypes, run.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
            asked = (library.omp_get_thread_num, library.omp_get_num_threads)
            return _OpenMP(run, *(_address_of(function) for function in asked))
    return None


_pool: ThreadPoolExecutor | None = None


def _forget() -> None:
    """Reset the pool: a forked child has the pool's object but none of its threads."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget)


def split(compiled: Compiled, arguments: Sequence[int], count: int, least: int) -> None:
    """Run a region on elements 0 … count − 1, one part per thread, each of at least `least` elements.

    `arguments` are its job from FIRST on: integers, and addresses of memory that the caller keeps alive. `least` is
    the minimum work per thread for a second thread to be worthwhile.
    """
    global _pool
    job = _Numbers(0, 0, count, 0, count, *arguments)
    parts = min(torch.get_num_threads(), count // least)
    if parts <= 1:
        compiled.call(ctypes.addressof(job))
        return
    library = _openmp()
    if library is not None:
        job[_OWN_NUMBER], job[_TEAM_SIZE] = library.own_number, library.team_size
        library.run(compiled.address, ctypes.addressof(job), parts, 0)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads()), thread_name_prefix="dpzo-kernels")
    edges = [count * part // parts // _ALIGNMENT * _ALIGNMENT for part in range(parts)] + [count]
    jobs = []
    for part in range(parts):
        jobs.append(_Numbers(0, 0, count, edges[part], edges[part + 1], *arguments))
    waiting = [_pool.submit(compiled.call, ctypes.addressof(own)) for own in jobs[1:]]
    compiled.call(ctypes.addressof(jobs[0]))
    for future in waiting:
        future.result()
