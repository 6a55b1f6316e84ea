"""Faults of an accountant: an error bound that bounds nothing. The check passes on dpzo's own."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dpzo.privacy.accounting import tilted

Plant = Callable[..., ModuleType]
BOUND = "return 2.0 * (forward + 3.0 * count * UNIT * mean + level * float(np.linalg.norm(total)))"


def check_transform_error_is_bounded(checks: ModuleType, made: Any, cells: int = 4096) -> None:
    """The stated error of a Fourier sum of two (`_power`, `_rounding`) covers the true one, by 80-bit sums."""
    masses = np.r_[0.5, np.random.Generator(np.random.PCG64(3)).random(cells - 1) / cells]
    long = masses.astype(np.longdouble)
    spectrum, whole = np.fft.rfft(masses), np.convolve(long, long)
    found = np.fft.irfft(made._power(spectrum, 2), cells)
    error = np.abs(found - whole[:cells] - np.r_[whole[cells:], 0]).max()
    if error > made._rounding(masses, np.abs(spectrum), found, 2):
        raise checks.Caught("rounding of the Fourier transform is larger than what is added: ε may be too small")


def test_a_reserve_that_bounds_no_rounding(checks: ModuleType, planted: Plant) -> None:
    """T·2⁻⁵² of δ kept back for all cells together, whatever the norms are."""
    check_transform_error_is_bounded(checks, tilted)
    reserved = planted(tilted, (BOUND, "return count * 2.0**-52 / cells"))
    with pytest.raises(checks.Caught, match="larger than what is added"):
        check_transform_error_is_bounded(checks, reserved)
