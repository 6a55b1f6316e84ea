"""Law 7 at scale: does a record's loss keep its bits whatever stands beside it, and does the start-up check notice?

    python -m benchmarks.isolation [--parts NAME,…] [--threads 1,2] [--json] [--quick]

Random models of every family, width, dtype and quantised base, at shapes (records × tokens) of every kind. For each
case two verdicts are compared. *Trials*, here: each record alone among dummy rows, in every place beside copies of
itself, after insertions, removals and permutations, beside records that are NaN throughout; all logits that a loss
reads are compared bit for bit, by code of its own. *Start-up*: what a run does before it reads a record. A case that
start-up passes and the trials do not is *missed*: a fault of the check. One that start-up refuses is run at the shape
that it chooses instead, and tried again. Every number of threads has a process of its own. Writes
benchmarks/results/isolation.json and the tables of docs/isolation.md, which a test holds to the results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.results_file import write_results
from dpzo.models import EncoderClassifier, LoraSettings, RowShape, TokenObjective, load_model, seeded_initialiser
from dpzo.models.batching import Encoded
from dpzo.models.families import FAMILIES, make_tiny
from dpzo.models.frozen_cache import Keep
from dpzo.models.isolation import CANDIDATES, check_isolation, choose_microbatch, lively, synthetic_rows
from dpzo.models.models import LoadedModel
from dpzo.models.objectives import RecordObjective, compute_features
from dpzo.models.shapes import HEAD_BLOCKS, FeatureProbe, TokenProbe, head_rows, synthetic_head
from dpzo.models.storage import Storage
from dpzo.zo import DirectionScheme, TrainableParameters
from dpzo.zo.stack import stacked

PAGE = Path(__file__).parents[1] / "docs" / "isolation.md"
SHAPES = ((1, 50), (4, 32), (5, 50), (7, 33), (8, 48), (13, 29), (16, 64), (32, 32))
ALIKE = 16
"""Records whose places are all tried, beside copies of themselves, and which are run alone."""
SHUFFLES = 16
"""Micro-batches of random records in random places, with and without NaN ones."""
VARIANTS = 8
"""Settings of the trainable part that go through one pass, where several do."""
BEGIN, END = "<!-- results: python -m benchmarks.isolation -->", "<!-- end of results -->"

Found = tuple[bytes, float]
"""All bits of one record that lead to its loss, and the loss in nats."""


@dataclass(frozen=True)
class Model:
    """One loaded model: its family, width, how the base is held, and what learns."""

    family: str
    hidden: int = 64
    inner: int = 172
    dtype: str = "float32"
    quantization: str = "none"
    trainable: str = "full"

    @property
    def base(self) -> str:
        """How the base is held, in one word."""
        return self.dtype if self.quantization == "none" else self.quantization


@dataclass(frozen=True)
class Part:
    """Models, shapes and a way of evaluating: every model at every shape."""

    models: tuple[Model, ...]
    shapes: tuple[tuple[int, int], ...] = SHAPES
    way: str = "whole"  # whole, prefix-batch, prefix-run, variants, features, head


EXPERTS = ("Mixtral", "Qwen2-MoE")
DENSE = tuple(name for name in FAMILIES if name not in (*EXPERTS, "T5"))
CORE = ("BERT", "RoBERTa", "GPT-2", "OPT", "Llama", "Qwen2", "Gemma")
FOUR = ("BERT", "GPT-2", "OPT", "Llama")
LOW = ("bfloat16", "float16")
PARTS: dict[str, Part] = {
    "families": Part(tuple(Model(name) for name in DENSE)),
    "experts": Part(tuple(Model(name) for name in EXPERTS), ((1, 50), (2, 16), (4, 32), (8, 16))),
    "16-bit": Part(tuple(Model(name, dtype=dtype) for name in CORE for dtype in LOW)),
    "quantised": Part(
        tuple(
            Model(name, inner=192, dtype=dtype, quantization=how, trainable="lora")
            for name in CORE
            for dtype, how in (("float32", "int8"), ("bfloat16", "int4"))
        ),
    ),
    "wider": Part(tuple(Model(name, width, inner) for name in FOUR for width, inner in ((32, 48), (200, 500)))),
    "prefix-batch": Part(tuple(Model(name, trainable="top") for name in FOUR), way="prefix-batch"),
    "prefix-run": Part(tuple(Model(name, trainable="top") for name in FOUR), way="prefix-run"),
    "variants": Part(tuple(Model(name, trainable="lora") for name in FOUR), way="variants"),
    "features": Part(tuple(Model(name, trainable="head") for name in ("BERT", "RoBERTa")), way="features"),
    "head": Part(
        tuple(Model("BERT", width, 172, trainable="head") for width in (64, 384)),
        tuple((block, classes) for block in (8, 100, 128, 256) for classes in (2, 6, 77)),
        way="head",
    ),
}
QUICK = {
    "families": Part(tuple(Model(name) for name in ("BERT", "Llama")), ((5, 50), (8, 48))),
    "experts": Part((Model("Mixtral"),), ((4, 16),)),
    "variants": Part((Model("Llama", trainable="lora"),), ((4, 32),), way="variants"),
}


@dataclass
class Verdict:
    """What the trials of one case found."""

    passes: int = 0
    changed: set[int] = field(default_factory=set)  # records whose bits were not always the same
    largest: float = 0.0  # between two losses of one record, in nats
    known: dict[int, Found] = field(default_factory=dict)

    def see(self, records: NDArray[np.int64], found: Sequence[Found]) -> None:
        """Compare what one micro-batch gave with what is known of its records."""
        self.passes += 1
        for record, (bits, loss) in zip(records.tolist(), found, strict=True):
            first = self.known.setdefault(record, (bits, loss))
            if first[0] != bits:
                self.changed.add(record)
                self.largest = max(self.largest, abs(first[1] - loss))


@dataclass(frozen=True)
class Case:
    """One model, shape and way of evaluating, ready to be tried."""

    records: int
    evaluate: Callable[[NDArray[np.int64]], list[Found]]  # of one micro-batch
    make: Callable[[Encoded, int], RecordObjective]  # what start-up checks
    shape: RowShape
    sick: Sick | None = None  # None: the records have no tokens


class Sick:
    """Makes chosen places of a micro-batch NaN from their embedding on."""

    def __init__(self, loaded: LoadedModel) -> None:
        model: Any = loaded.module.encoder if isinstance(loaded.module, EncoderClassifier) else loaded.module
        self.places: list[int] = []
        model.get_input_embeddings().register_forward_hook(self._sicken)

    def _sicken(self, _layer: Any, _arguments: Any, output: Tensor) -> Tensor:
        if self.places:
            output = output.clone()
            output[self.places] = float("nan")
        return output


def load(model: Model, folder: Path, way: str) -> LoadedModel:
    """The model, random, as a run loads it."""
    arguments = FAMILIES[model.family].arguments
    if "n_embd" in arguments:
        sizes: dict[str, int] = {"n_embd": model.hidden, "n_inner": model.inner}
    else:
        sizes = {"hidden_size": model.hidden, "intermediate_size": model.inner}
        if "ffn_dim" in arguments:
            sizes |= {"ffn_dim": model.inner, "word_embed_proj_dim": model.hidden}
    masked = FAMILIES[model.family].form == "masked"
    on_features = way in ("features", "head")
    return load_model(
        make_tiny(model.family, folder, **sizes),
        "classification" if masked else "completion",
        initialiser=seeded_initialiser(1),
        labels=("no", "yes") if masked else None,
        trainable="lora" if model.trainable == "top" else model.trainable,
        lora=LoraSettings(layers="top:1") if model.trainable == "top" else None,
        architecture="encoder" if on_features else None,
        prompted=not on_features,
        storage=Storage(model.dtype, model.quantization),  # type: ignore[arg-type]
    )


def row_shape(loaded: LoadedModel, width: int) -> RowShape:
    """What a task of this width declares."""
    vocabulary = len(loaded.tokenizer)
    if loaded.architecture == "encoder":
        return RowShape("classes", width, vocabulary, 2)
    if loaded.takes_masks:
        return RowShape("mask", width, vocabulary, 2, word_ids=(20, 30), mask_token_id=4)
    return RowShape("completion", width, vocabulary, 1, max_answer_tokens=min(16, width // 2), left_padded=True)


def token_bits(objective: TokenObjective, records: NDArray[np.int64]) -> list[Found]:
    """All bits of a record that lead to its loss, and the loss, by the production objective's own pass."""
    found = []
    for batch, logits in objective.run(records):
        losses = objective.record_losses(batch, logits).double().numpy()
        for place in range(batch.count):
            own = logits[place]
            if own.ndim == 2:  # the columns of the answer, each of which is predicted by the one before it
                own = own[own.shape[0] - 1 - int(batch.answer_lengths[place]) : -1]
            found.append((own.float().numpy().tobytes() + losses[place].tobytes(), float(losses[place])))
    return found


def shared_bits(objective: TokenObjective, records: NDArray[np.int64]) -> list[Found]:
    """The like when the frozen layers stand aside in the second evaluation; both, where they are not the same."""
    objective.forget()
    first, again = token_bits(objective, records), token_bits(objective, records)
    return [new if new == old else (old[0] + new[0], new[1]) for old, new in zip(first, again, strict=True)]


def table_bits(table: NDArray[np.float64]) -> list[Found]:
    """All bits of each column, and its first number: losses at several settings, or features."""
    return [(column.tobytes(), float(column[0])) for column in np.ascontiguousarray(table.T)]


@contextmanager
def made(model: Model, way: str, loaded: LoadedModel, size: int, width: int, sick: Sick | None) -> Iterator[Case]:
    """The case, with whatever its way of evaluating needs; for a head the width is the number of classes."""
    module, total = loaded.module, max(2 * size, ALIKE)
    if way == "head":
        assert isinstance(module, EncoderClassifier)
        head = EncoderClassifier(module.encoder, model.hidden, width)
        with lively(head, ("head.weight", "head.bias")):
            objective = synthetic_head(head, head_rows(head, total), size)
            shape = RowShape("classes", max_length=4, vocabulary=2, num_classes=width)
            yield Case(
                total,
                lambda records: table_bits(objective.losses(records)[None]),
                lambda rows, block: synthetic_head(head, rows, block),
                shape,
            )
        return
    shape = row_shape(loaded, width)
    rows = synthetic_rows(shape, total)
    if way == "features":
        assert isinstance(module, EncoderClassifier)
        yield Case(
            total,
            lambda records: table_bits(compute_features(module, rows, size, records).numpy().T),
            lambda other, count: FeatureProbe(module, other, count),
            shape,
            sick,
        )
    elif way == "variants":
        parameters = TrainableParameters(module, loaded.trainable_names)
        directions = DirectionScheme("rademacher", 3, VARIANTS // 2, parameters.sizes).at(0)
        shifts = [(number // 2, 0.05 * (-1) ** number) for number in range(VARIANTS)]
        tokens = TokenObjective(module, rows, size)
        with stacked(parameters, directions, shifts) as weights:
            yield Case(
                total,
                lambda records: table_bits(tokens.variant_losses(records, weights)),
                lambda other, count: TokenProbe(module, other, count, weights=weights),
                shape,
                sick,
            )
    else:
        keep: Keep = {"prefix-batch": "batch", "prefix-run": "run"}.get(way, "none")  # type: ignore[assignment]
        states = 1 if keep == "run" else 0
        tokens = TokenObjective(module, rows, size, prefix_layers=0 if keep == "none" else 1, keep=keep)
        yield Case(
            total,
            partial(token_bits if keep == "none" else shared_bits, tokens),
            lambda other, count: TokenProbe(module, other, count, states_of=states),
            shape,
            None if keep == "run" else sick,  # NaN comes from below what is kept
        )


def arrangements(size: int, total: int, draw: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Records alone, in every place beside themselves, shifted, cut short, shuffled, repeated."""
    for record in np.unique(np.linspace(0, total - 1, ALIKE).astype(np.int64)):
        yield np.array([record])
        yield np.full(size, record)
    order = draw.permutation(total)
    for shift in range(min(size, 8)):  # an insertion before all moves every other by one place
        yield np.roll(order, shift)[:size]
    for count in {size - 1, size // 2, 2} & set(range(1, size)):  # removals
        yield order[:count]
    for _ in range(SHUFFLES):
        yield draw.permutation(total)[:size]
        yield draw.integers(0, total, size=size)


def tried(case: Case, size: int) -> Verdict:
    """All arrangements; then beside records that are NaN, a quarter of them in each micro-batch."""
    verdict = Verdict()
    draw = np.random.Generator(np.random.PCG64(5))
    for records in arrangements(size, case.records, draw):
        verdict.see(records, case.evaluate(records))
    if case.sick is None or size == 1:
        return verdict
    for _ in range(SHUFFLES):
        records = draw.permutation(case.records)[:size]
        case.sick.places = draw.permutation(size)[: max(1, size // 4)].tolist()
        found = case.evaluate(records)
        if any(np.isfinite(found[place][1]) for place in case.sick.places):
            raise RuntimeError("a record that was made NaN has a finite loss: the trial proves nothing")
        well = np.setdiff1d(np.arange(size), case.sick.places)
        verdict.see(records[well], [found[place] for place in well])
        case.sick.places = []
    return verdict


def started(case: Case, size: int) -> bool:
    """What start-up says of the shape."""
    return check_isolation(case.make(synthetic_rows(case.shape, 2 * size), size), size)


def rows_of(part: str, chosen: Part, threads: int) -> Iterator[dict[str, Any]]:
    """One row of results for each model and shape of a part."""
    for model in chosen.models:
        with tempfile.TemporaryDirectory() as folder:
            loaded = load(model, Path(folder), chosen.way)
        sick = Sick(loaded)
        again: dict[tuple[int, int], Verdict] = {}  # by what start-up chose instead
        with lively(loaded.module, loaded.trainable_names):
            for size, width in chosen.shapes:
                row: dict[str, Any] = {"part": part, "family": model.family, "hidden": model.hidden}
                row |= {"base": model.base, "threads": threads, "records": size, "width": width}
                if loaded.has_experts and size > 1:
                    row["experts"] = True  # a run takes one record a pass, whatever the check says
                start = time.perf_counter()
                with made(model, chosen.way, loaded, size, width, sick) as case:
                    row["startup"] = started(case, size)
                    verdict = tried(case, size)
                    settled = size
                    if loaded.has_experts:
                        settled = choose_microbatch(case.make, case.shape, None, (1,))  # as `isolated_shapes` does
                    elif not row["startup"] and chosen.way != "variants":
                        candidates = HEAD_BLOCKS if chosen.way == "head" else CANDIDATES
                        settled = choose_microbatch(case.make, case.shape, size, candidates)
                row |= {"passes": verdict.passes, "tried": len(verdict.known), "changed": len(verdict.changed)}
                row["largest"] = verdict.largest
                if settled != size:
                    if (settled, width) not in again:
                        with made(model, chosen.way, loaded, settled, width, sick) as case:
                            again[settled, width] = tried(case, settled)
                    row |= {"settled": settled, "settled_changed": len(again[settled, width].changed)}
                row["seconds"] = round(time.perf_counter() - start, 2)
                yield row


def is_missed(row: dict[str, Any]) -> bool:
    """Whether the check passed a shape at which a record's bits moved, or a run would use one."""
    return bool((row["startup"] and row["changed"]) or row.get("settled_changed", 0))


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """The tables of the page, from the results."""
    lines = [
        "| part | base | threads | cases | sound | unsound, refused | sound, refused | missed | passes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for part, base, threads in dict.fromkeys((row["part"], row["base"], row["threads"]) for row in rows):
        own = [row for row in rows if (row["part"], row["base"], row["threads"]) == (part, base, threads)]
        kinds = [(bool(row["changed"]), bool(row["startup"])) for row in own]
        counts = (len(own), *(kinds.count(kind) for kind in ((False, True), (True, False), (False, False))))
        cells = (part, base, threads, *counts, sum(map(is_missed, own)), sum(row["passes"] for row in own))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "The next table lists unsound cases by shape (for a head: records × classes), the largest difference between "
        "two losses of one\nrecord, and the number of records per pass that the start-up check chose instead:",
        "",
    ]
    lines += ["| part | shape | threads | cases | unsound | largest, nats | instead |", "|---|---|---|---|---|---|---|"]
    for part, size, width, threads in dict.fromkeys(
        (row["part"], row["records"], row["width"], row["threads"]) for row in rows if row["changed"]
    ):
        place = (part, size, width, threads)
        own = [row for row in rows if (row["part"], row["records"], row["width"], row["threads"]) == place]
        bad = [row for row in own if row["changed"]]
        instead = ", ".join(str(size) for size in sorted({row["settled"] for row in bad if "settled" in row}))
        largest = max(row["largest"] for row in bad)
        shape = f"{size} × {width}"
        lines.append(
            f"| {part} | {shape} | {threads} | {len(own)} | {len(bad)} | {largest:.1e} | {instead or 'none'} |"
        )
    return "\n".join(lines) + "\n"


def write_page(rows: Sequence[dict[str, Any]]) -> None:
    """Replace what stands between the page's marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{tables(rows)}{END}{after}", encoding="utf-8")


def measured(parts: Sequence[str], threads: int, quick: bool) -> list[dict[str, Any]]:
    """The rows of the parts on so many threads, from a child; its progress is passed on to standard error."""
    command = [sys.executable, "-m", "benchmarks.isolation", "--child", "--parts", ",".join(parts)]
    command += ["--threads", str(threads), *(["--quick"] if quick else [])]
    rows = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            rows.append(json.loads(line))
            if len(rows) % 50 == 0 and not quick:
                print(f"{len(rows)} cases on {threads} threads, at {rows[-1]['part']}", file=sys.stderr, flush=True)
    if child.returncode:
        raise SystemExit(f"the measurement on {threads} threads ended with {child.returncode}")
    return rows


def main() -> None:
    """Measure on each number of threads in a child, print, write the results and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="six small cases, seconds, nothing written")
    parser.add_argument(
        "--rows", nargs="*", default=[], help="files of rows that --child printed, in place of measuring"
    )
    parser.add_argument("--notes", default="random weights", help="what stands beside the results")
    parser.add_argument("--child", action="store_true", help="measure in this process, and print a row a line")
    given = parser.parse_args()
    known = QUICK if given.quick else PARTS
    parts = given.parts.split(",") if given.parts else list(known)
    if given.child:
        torch.set_num_threads(int(given.threads))
        for part in parts:
            for row in rows_of(part, known[part], int(given.threads)):
                print(json.dumps(row), flush=True)
        return
    if given.rows:
        rows = [json.loads(line) for name in given.rows for line in Path(name).read_text().splitlines()]
        order = list(known)
        rows.sort(key=lambda row: (order.index(row["part"]), row["threads"]))
    else:
        rows = [row for threads in given.threads.split(",") for row in measured(parts, int(threads), given.quick)]
    if given.rows or not (given.quick or given.parts):
        write_results("isolation", rows, given.notes)
        write_page(rows)
    print(json.dumps(rows) if given.json else tables(rows))
    if any(map(is_missed, rows)):
        raise SystemExit("the start-up check missed a case; strengthen dpzo.models.isolation")


if __name__ == "__main__":
    main()
