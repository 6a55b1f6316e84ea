"""Run folders: train into one, resume it, and replay it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpzo.config.plain import refusing
from dpzo.config.reading import ConfigLike, as_config
from dpzo.config.schema import PRIVATE, RunConfig
from dpzo.config.solve import AUTO, auto_note
from dpzo.data.tasks.tables import Tell, untold
from dpzo.forecast.sizing import require_memory, size_up_if_possible
from dpzo.models import fingerprint_tensors, save
from dpzo.models.quiet import silent_libraries
from dpzo.report import write_card
from dpzo.run import loop as trainer
from dpzo.run.build import RunFacts, RunParts, rebuild, resolve_num_examples, restart, start
from dpzo.run.declared import without_ignored
from dpzo.run.journal import read, write_durably
from dpzo.run.local import (
    Data,
    as_folder,
    base_name,
    found_base,
    located,
    read_local,
    records_of,
    source_again,
    write_local,
)
from dpzo.run.local import DataSource as DataSource
from dpzo.run.loop import RandomnessAt, Stopped
from dpzo.run.output import CONFIG, COUNT, claim_new, claimed, make_folder, require_begun, require_new
from dpzo.run.private_count import PrivateCount, check_private_count, count_text, release_count
from dpzo.run.progress import Progress as Progress
from dpzo.run.progress import Watcher as Watcher
from dpzo.run.progress import progress_of, unwatched
from dpzo.run.published import chosen_config as chosen_config
from dpzo.run.published import config_text
from dpzo.run.published import derived_note as derived_note
from dpzo.run.published import plan_facts as plan_facts
from dpzo.run.subject import objective, task_of
from dpzo.run.trained_model import FINISHED, MODEL
from dpzo.zo import Objective

PLAN = "plan.json"
_UNDECLARED = 10_000
"""Units assumed by a memory forecast if N is not declared; it affects only the memory of per-run caches."""


def train(
    config: ConfigLike,
    source: Data,
    output: str | Path,
    *,
    watch: Watcher = unwatched,
    tell: Tell = untold,
    nonprivate_randomness: RandomnessAt | None = None,
) -> dict[str, Any]:
    """Fine-tune on private records into the new folder `output`; returns the privacy card.

    `config` may be a RunConfig, a mapping of its groups, or the path of a YAML file; `source` holds the records in any
    form of `Data`.

    Raises:
        DpzoError: for a user error.
        Stopped: after Ctrl-C or SIGTERM; `resume` then resumes the run.
    """
    config, source, output = located(as_config(config)), DataSource.of(source), as_folder(output, "output")
    require_new(output)
    check_private_count(config.privacy)
    if Path(config.model.name).is_absolute():
        tell(f"the run's journal, card and model will name the base model by its path, {config.model.name}")
    if config.training.basis is not None:
        tell(f"the run's config and journal will name the public basis by its path, {config.training.basis}")
    config = without_ignored(config, source, tell=tell)
    task = task_of(config)
    declared = config.privacy.num_examples
    sized = size_up_if_possible(config, task, declared if isinstance(declared, int) else _UNDECLARED)
    if sized is not None:
        require_memory(sized)
    tell("reading the records")
    records = records_of(config, task, source, tell=tell)
    with ExitStack() as held:
        count = None
        if config.privacy.num_examples == PRIVATE:
            held.enter_context(claim_new(output))
            count = _count(config, records.num_units, output, nonprivate_randomness)
        num_examples, origin = (
            resolve_num_examples(config, task, source.data_folder, lambda: records.num_units)
            if count is None
            else (count.num_examples, "private-count")
        )
        tell("loading the base model, solving the plan, checking isolation on synthetic tokens")
        facts = RunFacts(num_examples, origin, count, has_guarantee=nonprivate_randomness is None)
        parts = start(config, facts, sized)
        if config.privacy.mechanism == AUTO:
            tell(auto_note(parts.job.plan))
        if note := derived_note(parts.job.header):
            tell(note)
        for note in parts.notes:
            tell(f"note: {note}")
        tell("preparing the records for the model")
        private = objective(records, parts.subject)
        return carry_out(
            parts, private, records.num_units, source, output, watch=watch, nonprivate_randomness=nonprivate_randomness
        )


def carry_out(
    parts: RunParts,
    private: Objective,
    num_units: int,
    source: DataSource,
    output: Path,
    *,
    watch: Watcher = unwatched,
    nonprivate_randomness: RandomnessAt | None = None,
) -> dict[str, Any]:
    """Run the prepared training into the new folder `output`; return the card."""
    counted = parts.job.header.get("count") is not None  # the folder was claimed when the count was written
    with nullcontext() if counted else claim_new(output):
        write_durably(output / CONFIG, config_text(parts.job.header).encode())
        plan = plan_facts(parts.job.plan, parts.job.header)
        write_durably(output / PLAN, (json.dumps(plan, indent=2) + "\n").encode())
        write_local(output, source, parts.subject.config.model.name)
        return _work(trainer.fit, parts, private, num_units, output, watch, nonprivate_randomness)


def _work(
    act: Callable[..., None],
    parts: RunParts,
    private: Objective,
    num_units: int,
    output: Path,
    watch: Watcher,
    nonprivate_randomness: RandomnessAt | None,
) -> dict[str, Any]:
    """Fit or resume, then save the model and the card; if stopped on request, only the card."""
    observe = watch(progress_of(parts))
    try:
        with silent_libraries():
            act(parts.job, private, num_units, output, observe=observe, nonprivate_randomness=nonprivate_randomness)
    except Stopped:
        write_card(output, read(output))
        raise
    return _finish(parts, output)


def resume(
    output: str | Path,
    *,
    source: Data | None = None,
    base: str | Path | None = None,
    watch: Watcher = unwatched,
    tell: Tell = untold,
    nonprivate_randomness: RandomnessAt | None = None,
) -> dict[str, Any]:
    """Resume the interrupted run in `output`; return the card. Raises as `train` does.

    `source`: the records, if they moved or were held in memory; `base`: the base model's current location, if it moved.
    """
    output = as_folder(output, "run")
    require_begun(output)
    transcript = read(output)
    with claimed(output):
        recorded, noted = read_local(output)
        source = source_again(output, recorded, source)
        tell("loading the base model, solving the plan, checking isolation on synthetic tokens")
        there = noted if noted is not None and Path(noted).is_dir() else None
        parts = restart(transcript, there if base is None else str(base))
        trainer.require_same_run(parts.job.header, transcript)
        records = records_of(parts.subject.config, parts.subject.task, source)
        private = objective(records, parts.subject)
        return _work(trainer.resume, parts, private, records.num_units, output, watch, nonprivate_randomness)


@dataclass(frozen=True)
class Replayed:
    """`fingerprint` of the rebuilt trained parameters; `equals_run`: whether they equal the run's.

    `equals_run` is None if the run folder holds no finished model to compare with.
    """

    fingerprint: str
    equals_run: bool | None


def replay(
    run: str | Path, output: str | Path, *, base: str | Path | None = None, watch: Watcher = unwatched
) -> Replayed:
    """Rebuild a run's model from its base model and journal alone and save it to `output`. No data, no noise."""
    run, output = as_folder(run, "run"), as_folder(output, "output")
    transcript = read(run)
    require_new(output)
    parts = rebuild(transcript, found_base(run, base_name(transcript), None if base is None else str(base)))
    trainer.replay(parts.job, transcript, observe=watch(progress_of(parts)))
    make_folder(output)
    save_model(parts, output)
    rebuilt = _trained_fingerprint(output / MODEL)
    finished = run / MODEL / FINISHED
    return Replayed(rebuilt, _trained_fingerprint(run / MODEL) == rebuilt if finished.is_file() else None)


def _finish(parts: RunParts, output: Path) -> dict[str, Any]:
    save_model(parts, output)
    return write_card(output, read(output))


def save_model(parts: RunParts, output: Path, *, flat: bool = False) -> None:
    """Save model/ with save_pretrained, and the fingerprint of the trained parameters for replay to compare.

    `flat`: use the format of version 0.1.0 (`dpzo.models.save`), to compare with a run of that version.
    """
    folder = output / MODEL
    folder.mkdir(mode=0o700, exist_ok=True)
    subject = parts.subject
    save(subject.loaded, folder, labels=subject.task.labels, max_length=subject.config.data.max_length, flat=flat)
    write_durably(
        folder / FINISHED, json.dumps({"fingerprint": fingerprint_tensors(parts.job.parameters.tensors())}).encode()
    )


def _trained_fingerprint(folder: Path) -> str:
    with refusing(f"{folder / FINISHED}: damaged; it names the trained weights: dpzo resume writes it anew"):
        return str(json.loads((folder / FINISHED).read_text(encoding="utf-8"))["fingerprint"])


def _count(config: RunConfig, num_units: int, output: Path, nonprivate_randomness: RandomnessAt | None) -> PrivateCount:
    """A private count, written to disk before use, so that its ε is recorded as spent even if the run fails later."""
    assert config.privacy.epsilon is not None
    share = config.privacy.count_share * config.privacy.epsilon
    count = release_count(num_units, share, nonprivate_randomness=nonprivate_randomness)
    write_durably(output / COUNT, count_text(count).encode())
    return count
