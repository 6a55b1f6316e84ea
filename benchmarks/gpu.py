"""What a GPU makes of dpzo: its kernels beside a copy, a private step beside two forwards, and how large a model fits.

    python -m benchmarks.gpu [all|kernels|steps|capacity] [--device cuda] [--shapes NAME,…] [--quick] [--json]

- kernels: every kernel compared with the plain-torch oracle bit for bit, at odd offsets and beyond 2³¹ elements, and
  its time over that of a copy of the same tensor.
- steps: OPT-13B and OPT-66B in bf16, random weights made on the device, all parameters and LoRA (r = 8), 16×512 tokens,
  logits of the answer only, K = 1: a private step over two plain forwards of the same micro-batch (interleaved,
  medians), and its peak memory over that of inference.
- capacity: the largest shape of a list that takes a step of 16×512 tokens, a record at a time: dpzo with all
  parameters, DP-SGD by Opacus with all parameters and with LoRA (ghost norms; hooks where weights are tied, which
  ghost norms refuse), LoRA by AdamW without privacy. Each attempt is a child process; a shape whose weights alone (for
  DP-SGD with all parameters, with their gradients) exceed the memory is not tried.

`--device cpu --shapes tiny --quick` shows that it runs; its figures mean nothing. A part keeps the other parts' rows in
benchmarks/results/gpu.json.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_kernels import Machine, kernel_rows
from benchmarks.results_file import RESULTS, write_results
from dpzo.models import LoraSettings, RowShape, TokenObjective, seeded_initialiser
from dpzo.models.adapters import add_adapter
from dpzo.models.batching import microbatches
from dpzo.models.isolation import synthetic_rows
from dpzo.models.quiet import silent_libraries
from dpzo.privacy import Gaussian, PoissonSampling, PrivacyPlan, PrivateChannel
from dpzo.zo import SCHEDULES, DirectionScheme, Sgd, TrainableParameters, central_difference

RECORDS, LENGTH, ANSWER = 16, 512, 4
METHODS = ("dpzo full", "dp-sgd full", "dp-sgd lora", "lora")


@dataclass(frozen=True)
class Shape:
    """A causal model; key-value heads only where they are fewer than the heads."""

    family: str
    hidden: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    key_values: int | None = None


SHAPES = {
    "tiny": Shape("opt", 64, 2, 4, 256, 512),
    "tiny-llama": Shape("llama", 64, 2, 4, 128, 512, 2),
    "opt-1.3b": Shape("opt", 2048, 24, 32, 8192, 50272),
    "opt-2.7b": Shape("opt", 2560, 32, 32, 10240, 50272),
    "opt-6.7b": Shape("opt", 4096, 32, 32, 16384, 50272),
    "llama-8b": Shape("llama", 4096, 32, 32, 14336, 128256, 8),
    "opt-13b": Shape("opt", 5120, 40, 40, 20480, 50272),
    "opt-30b": Shape("opt", 7168, 48, 56, 28672, 50272),
    "opt-66b": Shape("opt", 9216, 64, 72, 36864, 50272),
    "llama-70b": Shape("llama", 8192, 80, 64, 28672, 128256, 8),
}


def made(shape: Shape, device: str) -> Any:
    """The module in bf16 with random weights, made where it stays."""
    import transformers

    library: Any = transformers
    sizes = {"hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads}
    sizes |= {"vocab_size": shape.vocabulary, "max_position_embeddings": 2048}
    with silent_libraries(), torch.device(device), ExitStack() as after:
        after.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.bfloat16)
        if shape.family == "opt":
            config = library.OPTConfig(**sizes, ffn_dim=shape.inner, word_embed_proj_dim=shape.hidden)
            module: Any = library.OPTForCausalLM(config)
        else:
            config = library.LlamaConfig(
                **sizes, intermediate_size=shape.inner, num_key_value_heads=shape.key_values or shape.heads
            )
            module = library.LlamaForCausalLM(config)
    return module.eval().requires_grad_(False)


def parameters_of(module: Any, part: str) -> tuple[Any, TrainableParameters]:
    """(module, what learns): all of it, or LoRA added to it."""
    names = [name for name, _ in module.named_parameters()]
    if part == "lora":
        with silent_libraries():
            module, names, _ = add_adapter("lora", module, "causal", (), seeded_initialiser(0), LoraSettings(), 0)
    return module, TrainableParameters(module, names)


def objective_of(module: Any, shape: Shape, records: int, length: int, microbatch_size: int) -> TokenObjective:
    """Losses of the last tokens of public synthetic rows."""
    rows = RowShape("completion", length, shape.vocabulary, 2, ANSWER, left_padded=True)
    return TokenObjective(module, synthetic_rows(rows, records), microbatch_size)


class PrivateStep:
    """A private zeroth-order step as `train` takes it, K = 1, every record in the batch."""

    def __init__(
        self, objective: TokenObjective, parameters: TrainableParameters, records: int, kind: str, steps: int
    ) -> None:
        plan = PrivacyPlan(records, PoissonSampling(1.0), Gaussian(1.0), 1.0, steps, 1, 1e-5)
        self._objective, self._parameters, self._records, self._at = objective, parameters, records, 0
        self._channel, self._scheme = PrivateChannel(plan), DirectionScheme(kind, 0, 1, parameters.sizes)
        self._update = Sgd(SCHEDULES["constant"](1e-6, steps, 0), plan.expected_batch_size)

    def __call__(self) -> None:
        directions = self._scheme.at(self._at)
        batch = self._channel.draw_batch(self._records)
        rows = central_difference(self._objective, self._parameters, batch, directions, 1e-3)
        self._update.apply(self._parameters, {}, directions, self._channel.release(rows).slopes(), self._at)
        self._at += 1


def step_rows(machine: Machine, shapes: Sequence[str], quick: bool) -> list[dict[str, Any]]:
    """A private step over two plain forwards, in time and memory."""
    records, length, repeats = (4, 32, 2) if quick else (RECORDS, LENGTH, 7)
    found = []
    for name in shapes:
        shape = SHAPES[name]
        module = made(shape, machine.device)
        for part in ("full", "lora"):
            module, parameters = parameters_of(module, part)
            objective = objective_of(module, shape, records, length, records)
            units = np.arange(records, dtype=np.int64)
            for kind in ("rademacher", "gaussian") if part == "full" else ("rademacher",):
                step = PrivateStep(objective, parameters, records, kind, repeats + 1)
                times: tuple[list[float], list[float]] = ([], [])
                peaks: list[float | None] = []
                with torch.no_grad():
                    for _ in range(repeats + 1):
                        parameters.scratch.clear()
                        machine.fresh_peak()
                        times[0].append(machine.seconds(lambda o=objective, u=units: [o.losses(u) for _ in range(2)]))
                        inference = machine.peak_mib()
                        machine.fresh_peak()
                        times[1].append(machine.seconds(step))
                        peaks = [inference, machine.peak_mib()]
                two, ours = (statistics.median(each[1:]) for each in times)
                found.append(
                    {
                        "part": "steps",
                        "case": f"{name} {part} {records}×{length} {kind}",
                        "parameters": sum(p.numel() for p in module.parameters()),
                        "trainable": parameters.dimension,
                        "two_forwards_s": two,
                        "private_step_s": ours,
                        "ours_ratio": ours / two,
                        "inference_mib": peaks[0],
                        "peak_mib": peaks[1],
                        "memory_ratio": None if peaks[0] is None or peaks[1] is None else peaks[1] / peaks[0],
                    }
                )
        del module, parameters, objective, step
        if machine.cuda:
            torch.cuda.empty_cache()
    return found


def capacity_rows(machine: Machine, shapes: Sequence[str], quick: bool) -> list[dict[str, Any]]:
    """For each method the attempts from the largest shape down to the first that takes a step.

    A family that the method refuses is left out with the reason, once.
    """
    found = []
    weights = {name: sum(p.numel() for p in made(SHAPES[name], "meta").parameters()) * 2 / 2**20 for name in shapes}
    for method in METHODS:
        refused: set[str] = set()
        for name in sorted(shapes, key=lambda one: -weights[one]):
            if SHAPES[name].family in refused:
                continue
            least = weights[name] * (2 if method == "dp-sgd full" else 1)
            row = {"part": "capacity", "method": method, "shape": name, "weights_mib": round(weights[name], 1)}
            if least > machine.total_mib():
                found.append({**row, "fits": False, "reason": "weights and gradients alone exceed the memory"})
                continue
            row |= _in_child(["--method", method, "--shapes", name, "--device", machine.device], quick)
            found.append(row)
            if row["fits"]:
                break
            if row["reason"] != "out of memory":  # the method does not serve this kind of model, of whatever size
                refused.add(SHAPES[name].family)
    return found


def _in_child(arguments: Sequence[str], quick: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu", "attempt", *arguments, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"fits": False, "reason": "out of memory" if "out of memory" in done.stderr.lower() else last[:200]}
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def attempt(machine: Machine, method: str, name: str, quick: bool) -> dict[str, Any]:
    """One step of a method, a record at a time; what it took."""
    records, length = (4, 32) if quick else (RECORDS, LENGTH)
    shape, part = SHAPES[name], "full" if method.endswith("full") else "lora"
    module, parameters = parameters_of(made(shape, machine.device), part)
    objective = objective_of(module, shape, records, length, 1)
    units = np.arange(records, dtype=np.int64)
    if method == "dpzo full":
        run: Callable[[], Any] = PrivateStep(objective, parameters, records, "rademacher", 2)
    elif method == "lora":
        run = _adamw(objective, parameters, units)
    else:
        run = _dp_sgd(objective, parameters, units)
    seconds = [machine.seconds(run) for _ in range(2)]
    return {"fits": True, "reason": "", "peak_mib": machine.peak_mib(), "seconds": seconds[1]}


def _adamw(objective: TokenObjective, parameters: TrainableParameters, units: Any) -> Callable[[], None]:
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(list(parameters), lr=1e-4)
    device = next(iter(parameters)).device

    def run() -> None:
        optimizer.zero_grad()
        for batch in microbatches(objective.encoded, units, 1, device):
            objective.record_losses(batch, objective.logits(batch)).sum().backward()
        optimizer.step()

    return run


def _dp_sgd(objective: TokenObjective, parameters: TrainableParameters, units: Any) -> Callable[[], None]:
    from dpzo.experiments.baselines import clipped_sums
    from dpzo.experiments.baselines.differentiable import differentiable

    names = {name for name, _ in parameters.module.named_parameters(remove_duplicate=False)}
    tied = len(names) > len(list(parameters.module.named_parameters())) and not any("lora_" in name for name in names)

    def run() -> None:
        with clipped_sums(parameters, differentiable(objective), 1.0, "hooks" if tied else "ghost") as clipped:
            for parameter, whole in zip(parameters, clipped(units), strict=True):
                parameter.data.add_(whole.to(parameter.dtype), alpha=-1e-6)

    return run


def _written(part: str, rows: list[dict[str, Any]]) -> None:
    """gpu.json with these rows in place of the part's earlier ones."""
    path = RESULTS / "gpu.json"
    earlier = json.loads(path.read_text())["rows"] if path.exists() else []
    kept = [] if part == "all" else [row for row in earlier if row["part"] != part]
    notes = "Each row has its own date. Weights are random: speed and memory do not depend on what they know."
    print(f"written: {write_results('gpu', kept + rows, notes).name}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _shown(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        cells = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()]
        print("  ".join(cells))


def main() -> None:
    """Run the parts asked for, print their rows, and write benchmarks/results/gpu.json from a CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("all", "kernels", "steps", "capacity", "attempt"), default="all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", default="", help="names separated by commas; default: what the part is about")
    parser.add_argument("--method", choices=METHODS, default="dpzo full", help="of an attempt")
    parser.add_argument("--quick", action="store_true", help="small tensors and few tokens: does it run?")
    parser.add_argument("--json", action="store_true", help="print rows as one JSON list and write no file")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: no CUDA device; --device cpu --shapes tiny --quick only shows that it runs")
    unknown = sorted(set(filter(None, options.shapes.split(","))) - SHAPES.keys())
    if unknown:
        sys.exit(f"benchmarks.gpu: --shapes {unknown[0]} is unknown; choose from {', '.join(SHAPES)}")
    machine = Machine(options.device)
    shapes = options.shapes.split(",") if options.shapes else []
    if options.part == "attempt":
        print(json.dumps(attempt(machine, options.method, shapes[0], options.quick)))
        return
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "kernels": lambda: kernel_rows(machine, options.quick),
        "steps": lambda: step_rows(machine, shapes or ["opt-13b", "opt-66b"], options.quick),
        "capacity": lambda: capacity_rows(
            machine, shapes or [name for name in SHAPES if "tiny" not in name], options.quick
        ),
    }
    rows = []
    for name, run in parts.items():
        if options.part in ("all", name):
            stamp = {"device": machine.name, "triton": _version("triton"), "date": datetime.date.today().isoformat()}
            own = [{**row, **stamp} for row in run()]
            rows += own
            if not options.json:
                _shown(own)
    if options.json:
        print(json.dumps(rows, ensure_ascii=False))
    elif machine.cuda and not options.quick:
        _written(options.part, rows)
    if not all(row.get("equal", True) for row in rows):
        sys.exit("benchmarks.gpu: a kernel's bits differ from the oracle's")


if __name__ == "__main__":
    main()
