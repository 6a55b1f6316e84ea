"""Every kernel on a device: its bits beside those of the oracle, its time beside a copy's. For `benchmarks.gpu`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dpzo.zo.kernels import choose, mask, reference, rounding, spec
from dpzo.zo.kernels.spec import Stream

LAWS = {"rademacher": spec.SIGNS, "gaussian": spec.NORMALS, "orthogonal": spec.WALSH}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Machine:
    """The device's clock and memory."""

    def __init__(self, device: str) -> None:
        self.device, self.cuda = device, device.startswith("cuda")

    def seconds(self, run: Callable[[], Any]) -> float:
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def fresh_peak(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak_mib(self) -> float | None:
        return round(torch.cuda.max_memory_allocated() / 2**20, 1) if self.cuda else None

    def total_mib(self) -> float:
        if self.cuda:
            return torch.cuda.get_device_properties(0).total_memory / 2**20
        import psutil

        return float(psutil.virtual_memory().total / 2**20)

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name() if self.cuda else "cpu"


def kernel_rows(machine: Machine, quick: bool) -> list[dict[str, Any]]:
    """Bits and time of every kernel, for each law and type."""
    count = (1 << 14) + 5 if quick else (1 << 25) + 5
    repeats = 3 if quick else 20
    device = torch.device(machine.device)
    kernels = choose.kernels_for("numba", device)
    found = []
    for law_name, law in LAWS.items():
        stream = Stream(law, 0x89ABCDEF, 0x76543210, 77, 5, 3 | 2 << 24, origin=61)
        bits = replace(stream, law=spec.SIGNS, c3=spec.PURPOSES["rounding"] << 24)
        streams = [replace(stream, c3=k | 2 << 24) for k in range(4)]
        terms = (streams, [1.0, 0.5, 2.0, 1.25], [0.1, -0.2, 0.3, 1e-3])
        for dtype in DTYPES:
            base = (torch.randn(count, device=device) * 0.02).to(dtype)
            out, oracle = torch.empty_like(base), torch.empty_like(base)
            copy = statistics.median(machine.seconds(lambda o=out, b=base: o.copy_(b)) for _ in range(repeats))
            pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}

            def shift(with_: Any, into: Tensor, start: int, base: Tensor = base, stream: Stream = stream) -> None:
                with_.add(stream, 1.25, base, 1e-3, into, start)

            for start in (0, 61, (1 << 33) + 7):
                pairs[f"add at {start}"] = (
                    lambda s=start, o=out: shift(kernels, o, s),
                    lambda s=start, o=oracle: shift(reference, o, s),
                )
            if dtype == torch.float32:
                pairs["fill"] = (
                    lambda o=out, s=stream: kernels.fill(s, 1.0, o, 61),
                    lambda o=oracle, s=stream: reference.fill(s, 1.0, o, 61),
                )
                pairs["step K=4"] = (
                    lambda o=out, b=base, t=terms: kernels.step(*t, o.copy_(b), 61),
                    lambda o=oracle, b=base, t=terms: reference.step(*t, o.copy_(b), 61),
                )
                pairs["mask"] = (
                    lambda o=out, b=base, s=bits: choose.keep("numba", s, 1 << 30, o.copy_(b), 61),
                    lambda o=oracle, b=base, s=bits: mask.keep(s, 1 << 30, o.copy_(b), 61),
                )
            else:
                wide = base.float() * 1.001
                pairs["round"] = (
                    lambda o=out, w=wide, b=bits: choose.round_into("numba", b, w, o, 61),
                    lambda o=oracle, w=wide, b=bits: rounding.round_into(b, w, o, 61),
                )
                if choose.fuses_rounding("numba", device):
                    one = ([stream], [1.25], [1e-3])
                    pairs["step K=1, rounded"] = (
                        lambda o=out, b=base, t=one, r=bits: choose.step_rounded(*t, o.copy_(b), 61, r),
                        lambda o=oracle, b=base, t=one, r=bits: _rounded_step(t, o.copy_(b), r),
                    )
            for operation, (ours, plain) in pairs.items():
                ours()
                plain()
                kind = torch.int32 if dtype == torch.float32 else torch.int16
                equal = torch.equal(out.view(kind), oracle.view(kind))
                seconds = statistics.median(machine.seconds(ours) for _ in range(repeats))
                copies = 2 if "step" in operation or operation == "mask" else 1  # the copy that begins it is taken off
                found.append(
                    {
                        "part": "kernels",
                        "directions": law_name,
                        "dtype": str(dtype).removeprefix("torch."),
                        "operation": operation,
                        "elements": count,
                        "equal": equal,
                        "seconds": seconds,
                        "copy_seconds": copy,
                        "ours_ratio": (seconds - (copies - 1) * copy) / copy,
                    }
                )
        if not quick:
            found.append({"part": "kernels", "directions": law_name, **_beyond_32_bits(kernels, stream, device)})
    return found


def _rounded_step(terms: tuple[Any, Any, Any], theta: Tensor, bits: Stream) -> None:
    wide = theta.float()
    reference.step(*terms, wide, 61)
    rounding.round_into(bits, wide, theta, 61)


def _beyond_32_bits(kernels: Any, stream: Stream, device: torch.device) -> dict[str, Any]:
    """The last elements of a tensor of more than 2³¹."""
    count, tail = (1 << 31) + (1 << 20) + 3, 1 << 20
    theta = torch.ones(count, dtype=torch.bfloat16, device=device)
    kernels.add(stream, 1.0, theta, 1e-2, theta, 61)
    oracle = torch.empty(tail, dtype=torch.bfloat16, device=device)
    reference.add(stream, 1.0, torch.ones_like(oracle), 1e-2, oracle, 61 + count - tail)
    equal = torch.equal(theta[-tail:].view(torch.int16), oracle.view(torch.int16))
    return {"dtype": "bfloat16", "operation": "add, last of 2^31 and more", "elements": count, "equal": equal}
