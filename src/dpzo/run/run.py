"""The `Run` class, which `dpzo.finetune` and `dpzo.load` return and the commands use."""

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
    """A run's folder: its privacy card, plan, releases and model, and the operations on them.

    Each attribute is read from the folder on access. Everything but the model's files is checked against the journal's
    hash chain. Only `evaluate` and `resume` read private data.

    Args:
        path: The run's folder. The constructor reads nothing; `dpzo.load` reads and checks the journal immediately.
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

        Computed from the journal; the card's files in the folder are not used.
        """
        transcript = read(self.path)
        state = (transcript.last_hash, transcript.num_steps, tuple(read_private_uses(self.path).items()))
        if self._card is None or self._card[0] != state:
            self._card = (state, card_of_run(self.path, transcript))
        return deepcopy(self._card[1])

    @property
    def card_text(self) -> str:
        """The privacy card as Markdown."""
        return render_markdown(self.card)

    @property
    def plan(self) -> PrivacyPlan:
        """The privacy plan: steps, sampling, noise, and the resulting ε."""
        transcript = read(self.path)
        with refusing(no_run(transcript.path)):
            return PrivacyPlan.from_dict(transcript.header["plan"])

    @property
    def config(self) -> ResolvedConfig:
        """The resolved config, including derived values. Raises DpzoError for a run of `dpzo.fit`."""
        transcript = self._of_text("has settings, and no config")
        with refusing(no_run(transcript.path)):
            return recorded_config(transcript.header["config"])

    @property
    def is_finished(self) -> bool:
        """Whether all steps are complete and the model and the card are saved."""
        transcript = read(self.path) if (self.path / modules.WEIGHTS).is_file() else None
        if transcript is not None and "settings" in transcript.header:
            return transcript.num_steps >= int(transcript.header["plan"]["steps"])
        return finished_card(self.path) is not None

    def releases(self) -> list[dict[str, Any]]:
        """Return every release of the run as a table.

        Returns:
            One dict per step, in order, ready for `pandas.DataFrame(run.releases())`: `step`; `burnt`, whether the step
            was spent without a release; `values`, the K released integers (None if burnt); and `slopes`, the same
            values in slope units, as the update used them.

        Raises:
            DpzoError: if the journal does not verify.

        Example:
            ```python
            first = dpzo.load("run").releases()[0]["slopes"]
            ```
        """
        return [_row(entry) for entry, _ in read(self.path).entries()]

    def model(self, base: str | Path | None = None) -> nn.Module:
        """Load the trained model in evaluation mode: a transformers model, with its PEFT adapter if it has one.

        Args:
            base: Current location of the base model, if it moved.

        Returns:
            A new module. Changing it affects neither the folder nor the model that `generate` uses.

        Raises:
            DpzoError: if the run is unfinished, is a run of `dpzo.fit`, or its base model is not found.
        """
        self._of_text("has no model folder; dpzo.replay(run, module) puts the trained weights into a module")
        return load_trained(self.path, base).loaded.module

    def tokenizer(self, base: str | Path | None = None) -> Any:
        """Load the trained model's tokenizer. Takes the arguments and raises the errors of `model`."""
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
        """Generate text with the trained model, as `dpzo.generate` does; the model stays loaded."""
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
        """Score the trained model on other records, as `dpzo.evaluate` does; the model stays loaded."""
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
        """Verify the run independently, without the private data.

        Args:
            base: The base model's folder or hub name, if it differs from the run's; its fingerprint must match the
                header's.
            key: A file of the signer's OpenSSH public keys.
            module: For a run of `dpzo.fit`: the module with its initial weights. Afterwards it holds the trained
                weights.
            tell: Called with a progress line for each check.

        Returns:
            A report: `ok`, `checks`, `first_bad`, `findings`, `not_checked`.

        Raises:
            DpzoError: if the folder holds no run.

        Example:
            ```python
            assert dpzo.load("run").verify().ok
            ```
        """
        return verify(self.path, base=base, key=key, module=module, tell=tell)

    def replay(
        self, target: str | Path | nn.Module, *, base: str | Path | None = None, watch: Watcher = unwatched
    ) -> folders.Replayed:
        """Rebuild the trained weights from the journal alone, as `dpzo.replay` does."""
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
        """Resume the interrupted run, as `dpzo.resume` does, and return this object."""
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
        """The journal of a text run. Raises DpzoError with the message `otherwise` for a run of `dpzo.fit`."""
        transcript = read(self.path)
        if "settings" in transcript.header:
            raise DpzoError(f"{self.path}: is a run of dpzo.fit, which {otherwise}")
        return transcript

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self._state()[0]})"

    def _repr_html_(self) -> str:
        """The claim and its limits, as HTML for a notebook."""
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
        """The run's state in words, and its card; the card is None if the run cannot be read."""
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
        The run. Its journal has been read and its hash chain is intact.

    Raises:
        DpzoError: if the folder has no journal, or if its journal does not verify.

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
    """Resume an interrupted run of `dpzo.finetune`. A step interrupted by a crash is repeated with the same draw.

    Args:
        run: The run's folder.
        data: The same records as before. Required if they were held in memory or their file has moved.
        base: Current location of the base model, if it moved.
        watch: As for `dpzo.finetune`.
        tell: Called with progress lines before the first step.
        nonprivate_randomness: For tests; only for a run that started with it.

    Returns:
        The finished run. A run that was already finished is returned unchanged.

    Raises:
        DpzoError: for a user error, or for a run of `dpzo.fit` (call `dpzo.fit` again instead).
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
        target: The destination: a new folder, or, for a run of `dpzo.fit`, the module with its initial weights.
        base: The current location of the base model of a `dpzo.finetune` run, if it has moved.
        watch: As for `dpzo.finetune`.

    Returns:
        The `fingerprint` of the rebuilt weights, and `equals_run`: whether they equal the run's weights (None if the
            run's folder holds no weights).

    Raises:
        DpzoError: if the journal does not verify or was written for another model.

    Example:
        ```python
        assert dpzo.replay("run", "rebuilt").equals_run
        ```
    """
    if isinstance(run, nn.Module):
        raise DpzoError("run: is a module; give the run's folder first: dpzo.replay(run, module)")
    return Run(run).replay(target, base=base, watch=watch)
