"""Evaluate the model of a finished run on other records, or generate text with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpzo.config.resolve import ResolvedConfig, recorded_config
from dpzo.data.tasks import Task
from dpzo.errors import DpzoError
from dpzo.models import LoadedModel, isolated_shapes, load_saved
from dpzo.models.generation import chat_prompts
from dpzo.models.generation import generate as continue_prompts
from dpzo.models.sources import find_source, has_tokenizer, load_tokenizer
from dpzo.report import record_private_use, write_card
from dpzo.report.private_uses import EVALUATION
from dpzo.run.header import check_header
from dpzo.run.journal import read
from dpzo.run.local import Data, DataSource, as_folder, found_base, naming_base, records_of
from dpzo.run.output import claimed
from dpzo.run.scoring import score
from dpzo.run.subject import Subject, row_shape, storage_of, task_of

MODEL, FINISHED = "model", "trained.json"
DataIs = Literal["public", "private"]


@dataclass(frozen=True)
class TrainedModel:
    """The loaded model of a finished run, with its config and task."""

    run: Path
    config: ResolvedConfig
    task: Task
    loaded: LoadedModel

    def evaluate(
        self, data: Data, split: Literal["dev", "test"] = "test", *, data_is: DataIs = "private"
    ) -> dict[str, Any]:
        """Like `evaluate`, without reloading the model."""
        _require_data_is(data_is)
        source = DataSource.of(data)
        if data_is == "private":
            note_private_use(self.run, EVALUATION)
        shape = row_shape(self.config, self.task, self.loaded)
        shapes = isolated_shapes(self.loaded, shape, self.config.training.microbatch_size)
        records = records_of(self.config, self.task, source, split)
        return score(Subject(self.config, self.task, self.loaded, shapes), records)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = 50,
        temperature: float = 0.0,
        seed: int = 0,
        stop: str | None = None,
    ) -> tuple[str, ...]:
        """Like `generate`, without reloading the model."""
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        return continue_prompts(
            self.loaded,
            chat_prompts(self.loaded.tokenizer, given) if self.config.data.kind == "chat" else given,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop=self.task.stop if stop is None else stop,
        )


def evaluate(
    run: str | Path,
    data: Data,
    split: Literal["dev", "test"] = "test",
    *,
    data_is: DataIs = "private",
    base: str | Path | None = None,
) -> dict[str, Any]:
    """Score a finished run's model on other records.

    No ε covers a result on private data. The run's folder first records that such an evaluation took place, without its
    result, and the card states it. A completion task with a text metric generates the texts to score.

    Args:
        run: The run's folder.
        data: Records with the run's columns, in any form that `dpzo.finetune` accepts.
        split: The split of a built-in task's folder or of a saved data set, if `data` names none.
        data_is: "public" or "private" (default).
        base: Current location of the base model, if it moved.

    Returns:
        `metric`, its `value`, the 95 % bootstrap `interval` over test sets, and further metrics in `others`.

    Raises:
        DpzoError: if the run is unfinished or the records cannot be read.

    Example:
        ```python
        accuracy = dpzo.evaluate("run", "public_test.csv", data_is="public")["value"]
        ```
    """
    _require_data_is(data_is)
    source = DataSource.of(data)
    return load_trained(run, base).evaluate(source, split, data_is=data_is)


def note_private_use(run: Path, kind: str) -> None:
    """Record a use of private data durably in the run's folder and on its card. Call this before the use."""
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
    """Generate text with a finished run's causal model.

    For a run on chats, each prompt becomes the user's turn in the tokenizer's chat template; for any other run the
    prompt is used unchanged.

    Args:
        run: The run's folder.
        prompts: One prompt, or several.
        max_new_tokens: Maximum number of tokens to generate per prompt.
        temperature: 0 selects the most probable token; above 0, tokens are sampled.
        seed: Public seed of the sampling.
        stop: Stop string; the text before it is returned. By default the task's.
        base: Current location of the base model, if it moved.

    Returns:
        The generated texts, one per prompt, without the prompts.

    Raises:
        DpzoError: if the run is unfinished, if the model is not causal, and as `dpzo.models.generation.generate`.

    Example:
        ```python
        (answer,) = dpzo.generate("run", "Dear customer,", max_new_tokens=20)
        ```
    """
    return load_trained(run, base).generate(
        prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, stop=stop
    )


def load_trained(run: str | Path, base: str | Path | None = None) -> TrainedModel:
    """Load the model of a finished run; `base` is the base model's current location. DpzoError if unfinished."""
    run = as_folder(run, "run")
    return TrainedModel(run, *_finished_model(run, base))


def load_trained_tokenizer(run: Path, base: str | Path | None = None) -> Any:
    """Load the tokenizer of a finished run's model, without its weights. DpzoError if the run is unfinished."""
    _require_finished(run)
    folder = run / MODEL
    if not has_tokenizer(folder):
        return load_trained(run, base).loaded.tokenizer
    return load_tokenizer(str(folder), find_source(str(folder), None, with_model=False))


def _require_finished(run: Path) -> None:
    if not (run / MODEL / FINISHED).is_file():
        raise DpzoError(f"{run}: the run is not finished; dpzo resume it first")


def _require_data_is(data_is: str) -> None:
    if data_is not in ("public", "private"):
        raise DpzoError("data_is: must be public or private")


def _finished_model(run: Path, base: str | Path | None) -> tuple[ResolvedConfig, Task, LoadedModel]:
    transcript = read(run)
    check_header(transcript.header)
    config = recorded_config(transcript.header["config"])
    task = task_of(config)
    _require_finished(run)
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
