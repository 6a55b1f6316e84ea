"""A unit whose evaluation raises counts 0; the others' rows are those of a batch without it, and nothing is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dpzo.errors import DpzoError
from dpzo.privacy import Release
from dpzo.run import loop as train
from dpzo.run.journal import read
from dpzo.zo import ExceptionSafeEstimator, central_difference, forward_difference

SECRET = "patient 4711"


class Stop(Exception):
    pass


@dataclass
class Raising:
    """The double's objective, except for what `act` does first with the units and the number of the call."""

    inner: Any
    act: Callable[[np.ndarray[Any, np.dtype[np.int64]], int], None]
    calls: int = 0
    forgotten: int = 0
    fill: Callable[[], None] = field(default=lambda: None)

    def losses(self, units: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
        self.calls += 1
        self.act(units, self.calls)
        return self.inner.losses(units)

    def forget(self) -> None:
        self.forgotten += 1

    def evaluate_filling(self) -> None:
        self.fill()


def rows_of(linear: ModuleType, units: list[int], act: Any, estimator: Any = central_difference, **made: Any) -> Any:
    job = linear.make_job()
    objective = Raising(linear.objective(job), act, **made)
    before = job.parameters.state()
    with torch.no_grad():
        safe = ExceptionSafeEstimator(estimator, stop=Stop)
        rows = safe(objective, job.parameters, np.array(units, dtype=np.int64), job.scheme.at(0), 1e-2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in job.parameters.tensors().items())
    return rows


def raises_on(*bad: int, error: type[BaseException] = ValueError) -> Callable[[Any, int], None]:
    def act(units: Any, call: int) -> None:
        if set(bad) & set(units.tolist()):
            raise error(SECRET)

    return act


def sound(units: Any, call: int) -> None:
    pass


@pytest.mark.parametrize("estimator", [central_difference, forward_difference], ids=["central", "forward"])
@pytest.mark.parametrize("bad", [(7,), (0,), (12,), (3, 4), (0, 5, 12), tuple(range(13))], ids=str)
def test_only_the_unit_that_raises_counts_zero(linear: ModuleType, bad: tuple[int, ...], estimator: Any) -> None:
    units = list(range(13))
    whole = rows_of(linear, units, sound, estimator)
    found = rows_of(linear, units, raises_on(*bad), estimator)
    for unit in units:
        if unit in bad:
            assert np.isnan(found[unit]).all()
        else:
            assert found[unit].tobytes() == whole[unit].tobytes()


@pytest.mark.parametrize("bad", [True, False])
def test_a_row_does_not_depend_on_who_raised_beside_it(linear: ModuleType, bad: bool) -> None:
    """The unit that raises replaced by one that does not, or left out: the rows beside it keep their bits."""
    act = raises_on(7) if bad else sound
    beside = rows_of(linear, [1, 2, 7, 9, 30], act)
    without = rows_of(linear, [1, 2, 9, 30], sound)
    assert beside[[0, 1, 3, 4]].tobytes() == without.tobytes()


def test_one_direction_is_enough_for_the_whole_row(linear: ModuleType) -> None:
    """A loss that raises at one of the shifted weights only: the unit's row is no number in any column."""
    job = linear.make_job()
    weight = job.parameters.module.weight

    def act(units: Any, call: int) -> None:
        if 7 in units and float(weight[0, 0]) > 0.1 and float(weight[0, 1]) < 0.1:
            raise IndexError(SECRET)

    objective = Raising(linear.objective(job), act)
    safe = ExceptionSafeEstimator(central_difference, stop=Stop)
    units = np.arange(10)
    with torch.no_grad():
        scheme = next(
            at
            for at in (job.scheme.at(step) for step in range(40))
            if np.isnan(safe(objective, job.parameters, units[7:8], at, 1e-2)).any()
        )
        found = safe(objective, job.parameters, units, scheme, 1e-2)
        whole = central_difference(linear.objective(job), job.parameters, units, scheme, 1e-2)
    assert np.isnan(found[7]).all()
    assert np.delete(found, 7, 0).tobytes() == np.delete(whole, 7, 0).tobytes()


class LossesDropped:
    """Gives fewer losses than units where a unit is invalid, as a loss that filters its rows does."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def losses(self, units: Any) -> Any:
        return self.inner.losses(units[units != 7])


def test_a_result_of_another_shape_is_an_exception(linear: ModuleType) -> None:
    job = linear.make_job()
    safe = ExceptionSafeEstimator(central_difference, stop=Stop)
    with torch.no_grad():
        found = safe(LossesDropped(linear.objective(job)), job.parameters, np.arange(10), job.scheme.at(0), 1e-2)
    assert np.flatnonzero(np.isnan(found).all(axis=1)).tolist() == [7]


def test_an_estimator_that_raises_counts_as_its_units(linear: ModuleType) -> None:
    def picky(objective: Any, parameters: Any, units: Any, directions: Any, smoothing: float) -> Any:
        rows = central_difference(objective, parameters, units, directions, smoothing)
        if (rows[units == 5]).any():
            raise ArithmeticError(f"slope {rows[units == 5]}")
        return rows

    found = rows_of(linear, list(range(9)), sound, picky)
    assert np.flatnonzero(np.isnan(found).all(axis=1)).tolist() == [5]


def test_an_empty_batch_that_raises_is_empty(linear: ModuleType) -> None:
    def never(*_: Any) -> Any:
        raise ValueError

    assert rows_of(linear, [], sound, never).shape == (0, 2)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Stop])
def test_a_stop_is_no_record(linear: ModuleType, error: type[BaseException]) -> None:
    with pytest.raises(error):
        rows_of(linear, list(range(9)), raises_on(7, error=error))


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_out_of_memory_is_tried_with_less(linear: ModuleType, error: type[Exception]) -> None:
    def act(units: Any, call: int) -> None:
        if len(units) > 3:
            raise error(SECRET)

    whole = rows_of(linear, list(range(13)), sound)
    assert rows_of(linear, list(range(13)), act).tobytes() == whole.tobytes()


def test_a_unit_too_large_for_memory_counts_zero(linear: ModuleType) -> None:
    """Filling still fits, so it is the record that is too large: the run goes on."""
    found = rows_of(linear, list(range(9)), raises_on(7, error=MemoryError))
    assert np.flatnonzero(np.isnan(found).all(axis=1)).tolist() == [7]


def test_a_machine_without_memory_stops_and_shows_nothing(linear: ModuleType) -> None:
    def fill() -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(DpzoError, match="not even one without records") as caught:
        rows_of(linear, list(range(9)), raises_on(7, error=MemoryError), fill=fill)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_what_was_held_for_the_units_is_forgotten(linear: ModuleType) -> None:
    job = linear.make_job()
    objective = Raising(linear.objective(job), raises_on(7))
    with torch.no_grad():
        ExceptionSafeEstimator(central_difference, stop=Stop)(
            objective, job.parameters, np.arange(8), job.scheme.at(0), 1e-2
        )
    assert objective.forgotten > 0


def test_no_step_is_burnt_and_nothing_is_said(
    linear: ModuleType, tmp_path: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The attack: whichever steps hold unit 7, the journal of a run in which it raises has a release for each step."""
    job = linear.make_job()
    seen: list[Any] = []
    objective = Raising(linear.objective(job), raises_on(7))
    train.fit(job, objective, linear.NUM_UNITS, tmp_path, observe=seen.append, nonprivate_randomness=linear.Draws())
    assert len(seen) == job.plan.steps
    assert all(isinstance(entry, Release) for entry, _ in read(tmp_path).entries())
    assert linear.burnt(tmp_path) == set()
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert all(SECRET.encode() not in path.read_bytes() for path in tmp_path.iterdir())


def test_the_run_is_the_one_in_which_the_unit_counts_zero(linear: ModuleType, tmp_path: Any) -> None:
    class Nothing:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def losses(self, units: Any) -> Any:
            return np.where(units == 7, np.nan, self.inner.losses(units))

    ended = []
    for name, make in (("raises", lambda inner: Raising(inner, raises_on(7))), ("nan", Nothing)):
        job = linear.make_job()
        folder = tmp_path / name
        folder.mkdir()
        train.fit(job, make(linear.objective(job)), linear.NUM_UNITS, folder, nonprivate_randomness=linear.Draws())
        ended.append(linear.fingerprint(job))
    assert ended[0] == ended[1]
