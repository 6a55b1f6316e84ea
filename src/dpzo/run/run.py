"""A run as an object: what `dpzo.finetune` and `dpzo.load` return, and what the commands work on."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from torch import nn

from dpzo.config.plain import refusing
from dpzo.config.resolve import ResolvedConfig, recorded_config
from dpzo.data.tasks.tables import Tell, untold
from dpzo.errors import DpzoError
from dpzo.privacy import PrivacyPlan, Release
from dpzo.report import card_of_run, read_private_uses, render_markdown, round_up
from dpzo.run import folders, modules
from dpzo.run.finished import finished_card
from dpzo.run.header import check_header
from dpzo.run.journal import Transcript, read
from dpzo.run.local import Data, DataSource, as_folder
from dpzo.run.loop import RandomnessAt
from dpzo.run.output import no_run
from dpzo.run.progress import Watcher, unwatched
from dpzo.run.trained_model import DataIs, TrainedModel, load_trained, load_trained_tokenizer
from dpzo.verify import Report, verify


class Run:
    """A run's folder: its card, plan and releases, its model, and what can be done with them.

    Everything is read from the folder when it is asked for, and all of it but the model's files is checked against the
    journal's hash chain. Nothing private is read or shown, except by `evaluate` and `resume`, which say so.

    Args:
        path: The run's folder. Nothing is read until something is asked for; `dpzo.load` reads the journal at once.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = as_folder(path, "run")
        self._card: tuple[object, dict[str, Any]] | None = None
        self._trained: tuple[object, TrainedModel] | None = None

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._path

    @property
    def card(self) -> dict[str, Any]:
        """The privacy card: `claim`, `epsilon`, `delta`, `guarantee`, `assumptions`, `not_covered` and more.

        Computed from the journal, whatever the card's files in the folder say.
        """
        transcript = read(self.path)
        state = (transcript.last_hash, transcript.num_steps, tuple(read_private_uses(self.path).items()))
        if self._card is None or self._card[0] != state:
            self._card = (state, card_of_run(self.path, transcript))
        return deepcopy(self._card[1])

    @property
    def card_text(self) -> str:
        """The privacy card as a page of Markdown."""
        return render_markdown(self.card)

    @property
    def plan(self) -> PrivacyPlan:
        """The privacy plan: steps, sampling, noise, and the ε that they come to."""
        transcript = read(self.path)
        with refusing(no_run(transcript.path)):
            return PrivacyPlan.from_dict(transcript.header["plan"])

    @property
    def config(self) -> ResolvedConfig:
        """The config as it ran, with the values that the run derived. DpzoError for a run of `dpzo.fit`."""
        transcript = self._of_text("has settings, and no config")
        with refusing(no_run(transcript.path)):
            return recorded_config(transcript.header["config"])

    @property
    def is_finished(self) -> bool:
        """Whether all steps are made and the model and the card are saved: nothing is left to resume."""
        transcript = read(self.path) if (self.path / modules.WEIGHTS).is_file() else None
        if transcript is not None and "settings" in transcript.header:
            return transcript.num_steps >= int(transcript.header["plan"]["steps"])
        return finished_card(self.path) is not None

    def releases(self) -> list[dict[str, Any]]:
        """Everything that the run published about its data, as a table.

        Returns:
            One dict a step, in order, which `pandas.DataFrame(run.releases())` takes: `step`; `burnt`, whether the step
            is spent without a release; `values`, the K released integers (None where burnt); and `slopes`, the same in
            slope units, which the update read.

        Raises:
            DpzoError: for a journal that does not verify.

        Example:
            ```python
            first = dpzo.load("run").releases()[0]["slopes"]
            ```
        """
        return [_row(entry) for entry, _ in read(self.path).entries()]

    def model(self, base: str | Path | None = None) -> nn.Module:
        """Load the trained model in evaluation mode: a model of transformers, with PEFT's adapter where there is one.

        Args:
            base: Current location of the base model, if it moved.

        Returns:
            A module that is the caller's own: changing it changes neither the folder nor what `generate` uses.

        Raises:
            DpzoError: for an unfinished run, a run of `dpzo.fit`, and a base model that is not found.
        """
        self._of_text("has no model folder; dpzo.replay(run, module) puts the trained weights into a module")
        return load_trained(self.path, base).loaded.module

    def tokenizer(self, base: str | Path | None = None) -> Any:
        """Load the trained model's tokenizer. Arguments and errors: as `model`."""
        self._of_text("has no tokenizer")
        return load_trained_tokenizer(self.path, base)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = 50,
        temperature: float = 0.0,
        seed: int = 0,
        stop: str | None = None,
        base: str | Path | None = None,
    ) -> tuple[str, ...]:
        """Generate text with the trained model, which stays loaded. Arguments and errors: as `dpzo.generate`."""
        return self._model(base).generate(
            prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, stop=stop
        )

    def evaluate(
        self,
        data: Data,
        split: Literal["dev", "test"] = "test",
        *,
        data_is: DataIs = "private",
        base: str | Path | None = None,
    ) -> dict[str, Any]:
        """Score the trained model, which stays loaded, on other records. Arguments and errors: as `dpzo.evaluate`."""
        source = DataSource.of(data)
        return self._model(base).evaluate(source, split, data_is=data_is)

    def verify(
        self,
        *,
        base: str | None = None,
        key: str | Path | None = None,
        module: nn.Module | None = None,
        tell: Callable[[str], None] = untold,
    ) -> Report:
        """Verify the run independently of whoever made it, without the private data.

        Args:
            base: The base model's folder or hub name, if not the run's; its fingerprint has to be the header's.
            key: A file of the signer's OpenSSH public keys.
            module: For a run of `dpzo.fit`: the module at its start. It holds the trained weights afterwards.
            tell: Called with a line about what is being checked.

        Returns:
            A report: `ok`, `checks`, `first_bad`, `findings`, `not_checked`.

        Raises:
            DpzoError: for a folder that holds no run.

        Example:
            ```python
            assert dpzo.load("run").verify().ok
            ```
        """
        return verify(self.path, base=base, key=key, module=module, tell=tell)

    def replay(
        self, target: str | Path | nn.Module, *, base: str | Path | None = None, watch: Watcher = unwatched
    ) -> folders.Replayed:
        """Rebuild the trained weights from the journal alone. Arguments, result and errors: as `dpzo.replay`."""
        if isinstance(target, nn.Module):
            return self._replay_into(target)
        self._of_text("is rebuilt in a module at its start; give that in place of a folder")
        return folders.replay(self.path, target, base=base, watch=watch)

    def resume(
        self,
        data: Data | None = None,
        *,
        base: str | Path | None = None,
        watch: Watcher = unwatched,
        tell: Tell = untold,
        nonprivate_randomness: RandomnessAt | None = None,
    ) -> Run:
        """Resume the run, wherever it stopped; returns this object. Arguments and errors: as `dpzo.resume`."""
        if not self.is_finished:
            self._of_text("is resumed by the call of dpzo.fit that began it")
            folders.resume(
                self.path,
                source=data,
                base=base,
                watch=watch,
                tell=tell,
                nonprivate_randomness=nonprivate_randomness,
            )
        return self

    def _replay_into(self, module: nn.Module) -> folders.Replayed:
        rebuilt = modules.replay(module, self.path)
        stored = modules.stored_fingerprint(self.path)
        return folders.Replayed(rebuilt, None if stored is None else stored == rebuilt)

    def _model(self, base: str | Path | None) -> TrainedModel:
        transcript = self._of_text("is a module of the caller's, who holds its model")
        state = (transcript.last_hash, base)
        if self._trained is None or self._trained[0] != state:
            self._trained = (state, load_trained(self.path, base))
        return self._trained[1]

    def _of_text(self, otherwise: str) -> Transcript:
        """The journal. DpzoError with the words `otherwise` where it is one of `dpzo.fit`."""
        transcript = read(self.path)
        if "settings" in transcript.header:
            raise DpzoError(f"{self.path}: is a run of dpzo.fit, which {otherwise}")
        return transcript

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self._state()[0]})"

    def _repr_html_(self) -> str:
        """The claim and what limits it, for a notebook."""
        state, card = self._state()
        name = html.escape(str(self.path))
        if card is None:
            return f"<div><strong>dpzo run <code>{name}</code></strong><p>{html.escape(state)}</p></div>"
        facts = {
            "state": state,
            "unit": card["unit"],
            "relation": f"{card['relation']['name']}: {card['relation']['meaning']}",
            "base model": card["base_model"]["name"],
        }
        rows = "".join(
            f"<tr><th>{html.escape(fact)}</th><td>{html.escape(str(value))}</td></tr>" for fact, value in facts.items()
        )
        found = "".join(f"<li>{html.escape(finding)}</li>" for finding in card["findings"])
        return (
            f"<div><strong>dpzo run <code>{name}</code></strong><p>{html.escape(card['claim'])}</p>"
            f"<table>{rows}</table>{f'<ul>{found}</ul>' if found else ''}</div>"
        )

    def _state(self) -> tuple[str, dict[str, Any] | None]:
        """Where the run stands, in words, and its card; None for a folder whose run cannot be read."""
        try:
            card = self.card
        except DpzoError as error:
            return str(error), None
        steps = card["steps"]
        claim = f"ε = {round_up(card['epsilon'])}, δ = {card['delta']!r}" if card["guarantee"] else "no guarantee"
        left = ", unfinished" if steps["spent"] < steps["planned"] else ""
        return f"{claim}, {steps['spent']} of {steps['planned']} steps{left}", card


def _row(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, Release):
        return {"step": entry.step, "burnt": True, "values": None, "slopes": None}
    return {
        "step": entry.step,
        "burnt": False,
        "values": list(entry.values),
        "slopes": [float(slope) for slope in entry.slopes()],
    }


def load(path: str | Path) -> Run:
    """Open a run, finished or not.

    Args:
        path: The folder that `dpzo.finetune`, `dpzo train` or `dpzo.fit` wrote.

    Returns:
        The run. Its journal has been read and its hash chain holds.

    Raises:
        DpzoError: for a folder without a journal, or with one that does not verify.

    Example:
        ```python
        print(dpzo.load("run").card["claim"])
        ```
    """
    run = Run(path)
    check_header(read(run.path).header)
    return run


def resume(
    run: str | Path,
    data: Data | None = None,
    *,
    base: str | Path | None = None,
    watch: Watcher = unwatched,
    tell: Tell = untold,
    nonprivate_randomness: RandomnessAt | None = None,
) -> Run:
    """Resume an interrupted run of `dpzo.finetune`. A step in flight at a crash is made again with the same draw.

    Args:
        run: The run's folder.
        data: The same records as before: needed where they were held in memory, and where their file has moved.
        base: Current location of the base model, if it moved.
        watch: As for `dpzo.finetune`.
        tell: Called with a line about what the run is doing before its first step.
        nonprivate_randomness: For tests; only for a run that began with it.

    Returns:
        The run, finished. A run of which nothing is left to do is returned as it is.

    Raises:
        DpzoError: for a run of `dpzo.fit` (call `dpzo.fit` again), and for whatever the caller can mend.
        dpzo.Stopped: after Ctrl-C or SIGTERM; the run can be resumed again.

    Example:
        ```python
        run = dpzo.resume("run", data=frame)
        ```
    """
    return Run(run).resume(data, base=base, watch=watch, tell=tell, nonprivate_randomness=nonprivate_randomness)


def replay(
    run: str | Path,
    target: str | Path | nn.Module,
    *,
    base: str | Path | None = None,
    watch: Watcher = unwatched,
) -> folders.Replayed:
    """Rebuild a run's trained weights from its base model and journal alone: no data, no noise, the same bits.

    Args:
        run: The run's folder.
        target: Where the weights go: a new folder, or, for a run of `dpzo.fit`, the module at its start.
        base: Where the base model of a run of `dpzo.finetune` lies now, if it moved.
        watch: As for `dpzo.finetune`.

    Returns:
        The `fingerprint` of the rebuilt weights, and `equals_run`: whether the run's own are the same; None where it
        holds none.

    Raises:
        DpzoError: for a journal that does not verify or was written for another model.

    Example:
        ```python
        assert dpzo.replay("run", "rebuilt").equals_run
        ```
    """
    if isinstance(run, nn.Module):
        raise DpzoError("run: is a module; give the run's folder first: dpzo.replay(run, module)")
    return Run(run).replay(target, base=base, watch=watch)
