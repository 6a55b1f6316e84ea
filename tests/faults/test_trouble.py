"""Losses, batches and folders that no one hopes for: a run goes through them, or says in one line why it cannot."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dpzo.errors import DpzoError
from dpzo.run import loop as train
from dpzo.run.journal import read
from dpzo.run.output import claim_new, claimed, require_begun

STEPS = 12


class Words:
    """A source of words whose batches hold nobody, or everybody."""

    def __init__(self, linear: ModuleType, step: int, word: int) -> None:
        self._noise, self._word = linear.Noise(step), word

    def words(self) -> Iterator[int]:
        found: Iterator[int] = self._noise.words()
        return found

    def word_array(self, size: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return np.full(size, self._word, dtype=np.uint64)


def bits(linear: ModuleType, folder: Path, losses: Callable[[Any], Any] | None, word: int | None) -> str:
    """Train with such losses and batches, rebuild from the journal alone; the same bits both times."""
    folder.mkdir()
    job, rebuilt = linear.make_job(STEPS), linear.make_job(STEPS)
    objective = linear.objective(job)
    if losses is not None:
        objective = type("Losses", (), {"losses": staticmethod(losses)})()
    noise = linear.Noise if word is None else lambda step: Words(linear, step, word)
    train.fit(job, objective, linear.NUM_UNITS, folder, nonprivate_randomness=noise)
    found = read(folder)
    assert found.closed
    assert found.num_steps == STEPS
    train.replay(rebuilt, found)
    assert all(bool(tensor.isfinite().all()) for tensor in job.parameters.state().values())
    assert linear.fingerprint(rebuilt) == linear.fingerprint(job)
    found_bits: str = linear.fingerprint(job)
    return found_bits


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324])
def test_losses_that_are_no_numbers_or_huge(linear: ModuleType, tmp_path: Path, value: float) -> None:
    """Every row is zero, so what is released is the noise, as it is when all losses are equal."""
    strange = bits(linear, tmp_path / "strange", lambda units: np.full(len(units), value), None)
    equal = bits(linear, tmp_path / "equal", lambda units: np.zeros(len(units)), None)
    assert strange == equal


def test_one_strange_loss_leaves_the_other_rows_alone(linear: ModuleType, tmp_path: Path) -> None:
    draw = np.random.Generator(np.random.PCG64(1))

    def losses(units: Any) -> Any:
        return draw.choice([np.nan, np.inf, -np.inf, 1e308, 0.0, 1.0], size=len(units))

    assert bits(linear, tmp_path / "run", losses, None)


def test_empty_batches_release_noise_alone(linear: ModuleType, tmp_path: Path) -> None:
    nobody = bits(linear, tmp_path / "nobody", None, 2**64 - 1)
    assert nobody == bits(linear, tmp_path / "equal", lambda units: np.zeros(len(units)), 2**64 - 1)


def test_a_batch_of_everybody(linear: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 times what is expected: every unit joins where one in 50 should; none is left out."""
    sizes: list[int] = []
    plan = linear.make_plan
    monkeypatch.setattr(linear, "make_plan", lambda steps: plan(steps, sampling=linear.NUM_UNITS / 50))
    real = linear.Squares.losses
    monkeypatch.setattr(linear.Squares, "losses", lambda self, units: sizes.append(len(units)) or real(self, units))
    bits(linear, tmp_path / "run", None, 0)
    assert set(sizes) == {linear.NUM_UNITS}


def test_a_folder_has_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claim_new(folder):
        for claim in (claimed, claim_new):
            with pytest.raises(DpzoError, match="another process is working on this run"), claim(folder):
                pass
        (folder / "config.yaml").write_text("")
    with claimed(folder):
        pass
    with pytest.raises(DpzoError, match="holds other files"), claim_new(folder):
        pass


def test_a_run_that_died_before_its_journal_says_what_was_spent(tmp_path: Path) -> None:
    require_begun(tmp_path)  # whoever reads the journal says that there is none
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(DpzoError, match="ended before its first step; nothing was spent"):
        require_begun(tmp_path)
    (tmp_path / "count.json").write_text("")
    with pytest.raises(DpzoError, match=r"ended before its first step; the ε of its count\.json is spent"):
        require_begun(tmp_path)


def test_a_folder_that_may_not_be_written(linear: ModuleType, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        folder = Path("/proc/self")  # not even for root
    else:
        folder = tmp_path
        folder.chmod(0o500)
    job = linear.make_job(STEPS)
    with pytest.raises(DpzoError, match=r"journal\.jsonl: ") as caught:
        train.fit(job, linear.objective(job), linear.NUM_UNITS, folder, nonprivate_randomness=linear.Draws())
    assert "\n" not in str(caught.value)


def test_a_run_beside_the_main_thread_needs_no_signals(linear: ModuleType, tmp_path: Path) -> None:
    ends: list[str] = []
    worker = threading.Thread(target=lambda: ends.append(bits(linear, tmp_path / "run", None, None)))
    worker.start()
    worker.join()
    assert ends == [linear.expected(set(), STEPS)]
