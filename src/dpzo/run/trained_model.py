"""The model of a finished run: score it on other records, or let it say what follows a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from dpzo.config.schema import RunConfig, parse_config
from dpzo.data.tasks import Task
from dpzo.errors import DpzoError
from dpzo.forecast.parts import storage_of
from dpzo.models import LoadedModel, isolated_shapes, load_saved
from dpzo.models.generation import chat_prompts
from dpzo.models.generation import generate as continue_prompts
from dpzo.report import record_private_use, write_card
from dpzo.report.private_uses import EVALUATION
from dpzo.run.build import Subject, row_shape, task_of
from dpzo.run.header import check_header
from dpzo.run.journal import read
from dpzo.run.local import DataSource, as_folder, found_base, naming_base, records_of
from dpzo.run.output import claimed
from dpzo.run.scoring import score

MODEL, FINISHED = "model", "trained.json"


def evaluate(
    run: str | Path,
    source: DataSource | str | Path | Sequence[str | Path],
    split: Literal["dev", "test"] = "test",
    *,
    data_is: Literal["public", "private"] = "private",
    base: str | Path | None = None,
) -> dict[str, Any]:
    """The task's metric of a finished run's model on other records, as `dpzo.run.scoring.score` gives it.

    On private records no ε covers the result; that such an evaluation was made, and nothing of it, is recorded in the
    run's folder first, and the card states it. Records are private unless `data_is` says otherwise. A completion task
    with a metric of texts generates them.
    """
    if data_is not in ("public", "private"):
        raise DpzoError("data_is: must be public or private")
    source, run = DataSource.of(source), as_folder(run, "run")
    config, task, loaded = _finished_model(run, base)
    if data_is == "private":
        note_private_use(run, EVALUATION)
    shapes = isolated_shapes(loaded, row_shape(config, task, loaded), config.training.microbatch_size)
    return score(Subject(config, task, loaded, shapes), records_of(config, task, source, split))


def note_private_use(run: Path, kind: str) -> None:
    """Record a use of private data in a run's folder, durably, and state it on the card; before the use is made."""
    with claimed(run):
        record_private_use(run, kind)
        write_card(run, read(run))


def generate(
    run: str | Path,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int = 50,
    temperature: float = 0.0,
    seed: int = 0,
    stop: str | None = None,
    base: str | Path | None = None,
) -> tuple[str, ...]:
    """What a finished run's causal model says after each prompt.

    A run of `--kind chat` reads a prompt as the user's turn, in the tokenizer's chat template; in any other run a
    prompt stands as it is. `stop` defaults to the task's. Errors: as `dpzo.models.generation.generate`, and
    DpzoError for an unfinished run.
    """
    config, task, loaded = _finished_model(as_folder(run, "run"), base)
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    return continue_prompts(
        loaded,
        chat_prompts(loaded.tokenizer, given) if config.data.kind == "chat" else given,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        stop=task.stop if stop is None else stop,
    )


def _finished_model(run: Path, base: str | Path | None) -> tuple[RunConfig, Task, LoadedModel]:
    transcript = read(run)
    check_header(transcript.header)
    config = parse_config(transcript.header["config"])
    task = task_of(config)
    if not (run / MODEL / FINISHED).is_file():
        raise DpzoError(f"{run}: the run is not finished; dpzo resume it first")
    num_labels = None if task.labels is None else len(task.labels)
    elsewhere = found_base(run, config.model.name, None if base is None else str(base))
    with naming_base(elsewhere):
        loaded = load_saved(
            run / MODEL,
            task.kind,
            base=config.model.name if elsewhere is None else elsewhere,
            num_labels=num_labels,
            architecture=transcript.header["base"]["architecture"],
            storage=storage_of(config.model),
        )
    return config, task, loaded
