"""A private step on 16-bit and on quantised base weights: peak memory and time, beside two plain forwards.

    python -m benchmarks.low_precision [--shape tiny|llama-100m|llama-8b] [--device cpu|cuda] [--records 8] [--length N]

Weights are random and made on the device: speed and memory do not depend on what they know. Each case runs in a child
process of its own, so that its peak is its own. On a GPU: `--shape llama-8b --device cuda`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results_file import write_results
from dpzo.config.solve import solve_plan
from dpzo.models.isolation import RowShape, synthetic_rows
from dpzo.models.objectives import TokenObjective
from dpzo.models.quiet import silent_libraries
from dpzo.models.storage import Storage, quantise
from dpzo.privacy import PrivateChannel
from dpzo.zo import SCHEDULES, DirectionScheme, Sgd, TrainableParameters, central_difference

# hidden, layers, heads, key-value heads, inner, vocabulary
SHAPES = {
    "tiny": (64, 2, 4, 2, 128, 512),
    "llama-100m": (768, 12, 12, 12, 2048, 32000),
    "llama-8b": (4096, 32, 32, 8, 14336, 128256),
}
CASES = {
    "float32 lora": ("float32", "none", "lora"),
    "bfloat16 lora": ("bfloat16", "none", "lora"),
    "int8 lora": ("float32", "int8", "lora"),
    "int4 lora": ("float32", "int4", "lora"),
    "bfloat16 int4 lora": ("bfloat16", "int4", "lora"),
    "float32 full": ("float32", "none", "full"),
    "bfloat16 full": ("bfloat16", "none", "full"),
}


def measure(case: str, shape: str, device: str, records: int, length: int, repeats: int) -> dict[str, Any]:
    """Seconds (medians) of two plain forwards and of a private step of K = 1, and the peak memory of the process."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    dtype, quantization, part = CASES[case]
    hidden, layers, heads, key_values, inner, vocabulary = SHAPES[shape]
    storage = Storage(dtype, quantization)  # type: ignore[arg-type]
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_values,
        intermediate_size=inner,
        vocab_size=vocabulary,
        max_position_embeddings=max(2048, length),
    )
    with silent_libraries(), torch.device(device):
        torch.set_default_dtype(storage.torch_dtype)
        module: Any = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
        quantise(module, storage)
        if part == "lora":
            module = get_peft_model(module, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    module.eval().requires_grad_(False)
    names = [name for name, _ in module.named_parameters() if part == "full" or "lora_" in name]
    parameters = TrainableParameters(module, names)
    rows = synthetic_rows(RowShape("completion", length, vocabulary, 1, 16, left_padded=True), records)
    objective = TokenObjective(module, rows, records)
    plan = solve_plan(num_examples=records, expected_batch_size=records, steps=repeats + 1, delta=1e-5, epsilon=2)
    channel = PrivateChannel(plan)
    scheme = DirectionScheme("rademacher", 0, 1, parameters.sizes)
    update = Sgd(SCHEDULES["constant"](1e-6, plan.steps, 0), plan.expected_batch_size)
    units = np.arange(records, dtype=np.int64)
    base = _peak(device)
    plain, private = [], []
    with torch.no_grad():
        for step in range(repeats + 1):
            plain.append(_timed(lambda: [objective.losses(units) for _ in range(2)], device))

            def private_step(step: int = step) -> None:
                directions = scheme.at(step)
                batch = channel.draw_batch(records)
                found = central_difference(objective, parameters, batch, directions, 1e-3)
                update.apply(parameters, {}, directions, channel.release(found).slopes(), step)

            private.append(_timed(private_step, device))
    two, one = statistics.median(plain[1:]), statistics.median(private[1:])
    return {
        "case": case,
        "shape": shape,
        "device": device,
        "weights_mib": round(sum(_stored(p.data) for p in module.parameters()) / 2**20, 1),
        "trainable": parameters.dimension,
        "two_forwards_s": two,
        "private_step_s": one,
        "ours_ratio": one / two,
        "loading_peak_mib": round(base, 1),
        "resident_mib": round(_resident(device), 1),
        "peak_mib": round(_peak(device), 1),
    }


def _timed(run: Any, device: str) -> float:
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _stored(tensor: torch.Tensor) -> int:
    """Bytes that a weight takes, a quantised one by its parts."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_stored(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def _resident(device: str) -> float:
    """What the process holds after its steps, when the peak of making a model and then quantising it is past."""
    if device == "cuda":
        return torch.cuda.memory_allocated() / 2**20
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed and not given back is not held
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _peak(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Measure each case in a child process, print, and write benchmarks/results/low_precision.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.child, given.shape, given.device, given.records, given.length, given.repeats)))
        return
    rows = []
    for case in given.cases.split(","):
        command = [sys.executable, "-m", "benchmarks.low_precision", *sys.argv[1:], "--child", case]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = child.stdout.strip().splitlines()
        error = child.stderr.strip().splitlines()[-1:]
        rows.append(json.loads(lines[-1]) if child.returncode == 0 else {"case": case, "failed": " ".join(error)})
    write_results("low_precision", rows, "random weights; K = 1; answer logits only; peak of a child process each")
    if given.json:
        print(json.dumps(rows))
        return
    print(
        "| case | weights MiB | resident MiB | peak MiB | two forwards s | private step s | ratio |\n"
        "|---|---|---|---|---|---|---|"
    )
    for row in rows:
        if "failed" in row:
            print(f"| {row['case']} | failed: {row['failed']} |")
            continue
        assert math.isfinite(row["ours_ratio"])
        memory = f"{row['weights_mib']} | {row['resident_mib']} | {row['peak_mib']}"
        times = f"{row['two_forwards_s']:.3f} | {row['private_step_s']:.3f} | {row['ours_ratio']:.2f}"
        print(f"| {row['case']} | {memory} | {times} |")


if __name__ == "__main__":
    main()
