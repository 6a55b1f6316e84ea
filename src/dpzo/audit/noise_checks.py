"""Tests of the noise: its distribution in every context, the independence of its draws, and its entropy.

Every test takes exact standard normals z (n, K), one a released coordinate, in the order in which they were drawn
(`NoiseLaw.normals`), and adds exact p-values to a tally. On a sound channel z are independent of one another and of
all that they are grouped by: steps, coordinates, batches, rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy import special, stats

from dpzo.audit.noise_law import NoiseLaw
from dpzo.audit.observed import Integers, Numbers, Observed
from dpzo.audit.tally import CheckTally, of_correlation, of_count, of_squares, of_sums

THRESHOLDS = np.array([0.01, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5])  # of |z|
LEAST_FOR_SHAPE = 200  # draws of a group whose shape is tested, besides its spread and mean
PERIODS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 20, 25, 32, 50, 64, 100)  # "every n-th step"
MOST_LAGS = 64
MOST_PRODUCTS = 2e9  # multiplications for the lag tests
MOST_SLOTS = 2500  # of one run, of which all pairs are compared
MOST_COORDINATES = 400  # among which a combination without noise is searched
MODULI = (*range(2, 65), 81, 96, 97, 100, 120, 125, 127, 128, 144, 250, 255, 256)
RESIDUES = 50_000  # draws whose remainders are tested


def magnitudes(z: Numbers) -> Numbers:
    """The sizes |z| mapped to standard normals: these show two draws of one size and different signs."""
    return np.asarray(-special.ndtri(np.clip(2.0 * special.ndtr(-np.abs(z)), 1e-300, 1.0 - 1e-16)))


def check_law(tally: CheckTally, z: Numbers, seen: Observed) -> None:
    """Spread, mean and shape: of all, and of each step, coordinate, kind of rows, size of batch and data set."""
    _shape(tally, "the noise", z.ravel())
    for what, groups in _groups(seen):
        _spread(tally, f"the noise {what}", z, groups)
        counts = np.bincount(groups)
        for group in np.flatnonzero(counts * z.shape[1] >= LEAST_FOR_SHAPE)[:64]:
            _shape(tally, f"the noise {what}", z[groups == group].ravel())
    columns = z.T if z.shape[1] <= 64 else z.T[:: z.shape[1] // 64]
    tally.add("the noise of a coordinate", of_squares((z**2).sum(axis=0), len(z)))
    tally.add("the noise of a coordinate", of_sums(z.sum(axis=0), len(z)))
    if z.shape[1] > 1 and len(z) >= LEAST_FOR_SHAPE:
        for column in columns:
            _shape(tally, "the noise of a coordinate", column)
    slots = _slots(z, seen)
    if slots is not None and slots.shape[1] > 1 and slots.shape[1] > z.shape[1]:
        tally.add("the noise of a coordinate in a step", of_squares((slots**2).sum(axis=0), len(slots)))
    sizes = seen.sizes.astype(np.float64)
    for y, what in ((z, "signs"), (magnitudes(z), "sizes")):
        for weights in (sizes - sizes.mean(), np.log1p(sizes) - np.log1p(sizes).mean()):
            if (norm := float((weights**2).sum())) > 0.0:
                tally.add(f"the noise's {what} follow the batch's size", of_sums(weights @ y, norm))


def _groups(seen: Observed) -> Iterator[tuple[str, Integers]]:
    """Names of groupings, each with the group (0, 1, …) of every release. None depends on the noise."""
    kinds, sizes = seen.kinds, seen.sizes
    last = int(seen.steps.max(initial=0))
    yield "by kind of rows", kinds
    doublings = np.log2(np.maximum(sizes, 1)).astype(np.int64)
    yield "by size of the batch", np.where(sizes > 3, 3 + doublings, sizes)
    yield "by size of the data set", np.unique(seen.units, return_inverse=True)[1].astype(np.int64)
    yield "by kind of rows and size of the data set", kinds * 16 + np.minimum(15, _codes(seen.units))
    if last > 0:
        yield "by step", seen.steps
        yield "in the last step", (seen.steps == last).astype(np.int64)
        for period in PERIODS:
            if period <= last:
                yield f"every {period}th step", seen.steps % period
        before = np.concatenate([[-1], kinds[:-1]])
        before[seen.steps == 0] = -1
        yield "by kind of the rows before", before + 1
        after_empty = np.concatenate([[0], (sizes[:-1] == 0) + 1])
        yield "after an empty batch", np.where(seen.steps == 0, 0, after_empty)
    for unit, what in ((0, "first"), (-1, "last")):
        present = zip(seen.batches, seen.units, strict=True)
        inside = [len(batch) > 0 and batch[unit] == unit % units for batch, units in present]
        yield f"by the {what} unit's presence", np.array(inside, dtype=np.int64)


def _codes(labels: Integers) -> Integers:
    return np.asarray(np.unique(labels, return_inverse=True)[1], dtype=np.int64)


def _spread(tally: CheckTally, what: str, z: Numbers, groups: Integers) -> None:
    """Σz² and Σz of each group."""
    counts = np.bincount(groups)
    some = counts > 0
    squares = np.bincount(groups, (z**2).sum(axis=1))[some]
    sums = np.bincount(groups, z.sum(axis=1))[some]
    numbers = counts[some] * z.shape[1]
    tally.add(what, of_squares(squares, numbers))
    tally.add(what, of_sums(sums, numbers))


def _shape(tally: CheckTally, what: str, z: Numbers) -> None:
    """Counts of |z| and of z up to thresholds, exactly binomial; and the largest gap of the distribution function.

    P(gap ≥ d) ≤ 2·exp(−2nd²) (Massart 1990), for every n.
    """
    if len(z) == 0:
        return
    size = np.abs(z)
    inner = np.array([(size <= threshold).sum() for threshold in THRESHOLDS])
    tally.add(what, of_count(inner, len(z), 1.0 - 2.0 * special.ndtr(-THRESHOLDS)))
    tails = np.concatenate([[(z >= t).sum(), (z <= -t).sum()] for t in THRESHOLDS])
    tally.add(what, of_count(tails, len(z), np.repeat(special.ndtr(-THRESHOLDS), 2)))
    ordered = special.ndtr(np.sort(z))
    ranks = np.arange(len(z))
    gap = max(float(((ranks + 1) / len(z) - ordered).max()), float((ordered - ranks / len(z)).max()))
    tally.add(what, min(1.0, 2.0 * math.exp(-2.0 * len(z) * gap**2)))


def _slots(z: Numbers, seen: Observed) -> Numbers | None:
    """One row a run, all its steps and coordinates side by side (runs, T·K); None where runs differ in length."""
    runs, length = np.unique(seen.runs, return_counts=True)
    if len(runs) == 0 or (length != length[0]).any():
        return None
    return z.reshape(len(runs), -1)


def check_independence(tally: CheckTally, z: Numbers, seen: Observed) -> None:
    """Draws are independent across steps, runs and coordinates, and no combination of draws lacks noise."""
    for y, what in ((z, "noise"), (magnitudes(z), "sizes of noise")):
        _lags(tally, what, y)
        slots = _slots(y, seen)
        _pairs(tally, f"{what} of two coordinates", y)
        if slots is not None and slots.shape[1] != y.shape[1]:
            chosen = slots if slots.shape[1] <= MOST_SLOTS else slots[:, np.r_[: MOST_SLOTS // 2, -MOST_SLOTS // 2 : 0]]
            _pairs(tally, f"{what} of two places in a run", chosen)
    _combinations(tally, z)
    slots = _slots(z, seen)
    if slots is not None and slots.shape[1] != z.shape[1]:
        _combinations(tally, slots)
    if z.shape[1] > 2:
        positive = (z > 0).sum(axis=1) % 2 == 1
        tally.add("the signs of a release", of_count(positive.sum(), len(z), 0.5))


def _lags(tally: CheckTally, what: str, z: Numbers) -> None:
    """Products of draws a fixed number of releases apart, each draw in at most one product of a test."""
    n, width = z.shape
    most = int(max(1, min(MOST_LAGS, MOST_PRODUCTS / max(1, n * width * width))))
    lags = {*range(1, most + 1), *(2**j for j in range(30) if most == MOST_LAGS)}
    for lag in sorted(lag for lag in lags if lag < n - 3):
        at = np.arange(n - lag)
        for colour in (0, 1):
            first = at[(at // lag) % 2 == colour]
            if len(first) > 3:
                _products(tally, f"{what} and that of {lag} releases later", z[first], z[first + lag])


def _products(tally: CheckTally, what: str, x: Numbers, y: Numbers) -> None:
    squares = np.outer((x**2).sum(axis=0), (y**2).sum(axis=0))
    chances = of_correlation(x.T @ y, squares, len(x))
    tally.add(what, chances.min(), chances.size)


def _pairs(tally: CheckTally, what: str, z: Numbers) -> None:
    """All pairs of columns."""
    width = z.shape[1]
    if width < 2 or len(z) < 4:
        return
    unit = z / np.sqrt(np.maximum((z**2).sum(axis=0), 1e-300))
    cosines = unit.T @ unit
    np.fill_diagonal(cosines, 0.0)
    most = np.abs(cosines).max()
    tally.add(f"{what} agree", of_correlation(most, np.ones(()), len(z)), width * (width - 1) // 2)


def _combinations(tally: CheckTally, z: Numbers) -> None:
    """Sums, alternating sums, and the combination of least and most noise: found on one half, tested on the other."""
    n, width = z.shape
    if width < 2:
        return
    signs = np.where(np.arange(width) % 2 == 0, 1.0, -1.0)
    for weights in (np.ones(width), signs):
        tally.add("a sum of coordinates", of_squares(((z @ weights) ** 2).sum() / width, n))
    half = n // 2
    if width <= MOST_COORDINATES and half >= 2 * width:
        _, vectors = np.linalg.eigh(z[:half].T @ z[:half])
        for vector in (*vectors.T[:3], vectors.T[-1]):
            tally.add("a combination of coordinates", of_squares(((z[half:] @ vector) ** 2).sum(), n - half))


def check_entropy(tally: CheckTally, law: NoiseLaw, seen: Observed, miss: float) -> None:
    """Repeats too frequent for chance, and remainders that are not spread over all values."""
    noise = seen.noise
    for folded in (noise, np.abs(noise), np.maximum(noise, -noise - 1.0)):
        _repeated_stretches(tally, law, folded, seen, miss)
        _repeated_slots(tally, law, folded, seen)
    _repeated_runs(tally, law, seen)
    _repeated_numbers(tally, law, noise.ravel())
    _remainders(tally, law, noise.ravel()[:RESIDUES])


def _repeated_stretches(tally: CheckTally, law: NoiseLaw, noise: Numbers, seen: Observed, miss: float) -> None:
    """The same w numbers from the start of one release as from that of another, anywhere: P ≤ pairs·(2p)^w.

    p is the largest probability of a number, 2p of one of either sign; w is the least for which a single repeat
    suffices. Overlapping stretches obey the same bound: each number is settled by an earlier one.
    """
    n, width = noise.shape
    largest = min(0.99, 2.0 * law.largest_mass)
    pairs = n * (n - 1) / 2.0
    if pairs < 1:
        return
    length = max(1, math.ceil(math.log(max(pairs, 2.0) * 1e3 / miss) / -math.log(largest)))
    releases = math.ceil(length / width)
    starts = np.arange(max(0, n - releases + 1))
    starts = starts[seen.runs[starts] == seen.runs[starts + releases - 1]]
    if len(starts) < 2:
        return
    stretches = np.concatenate([noise[starts + i] for i in range(releases)], axis=1)[:, :length]
    repeated = len(np.unique(stretches, axis=0)) < len(stretches)
    tally.add("the same noise twice", pairs * largest**length if repeated else 1.0)


def _repeated_slots(tally: CheckTally, law: NoiseLaw, noise: Numbers, seen: Observed) -> None:
    """Two places of a run that hold the same number in every run: at any distance, in any coordinates."""
    slots = _slots(noise, seen)
    if slots is None or slots.shape[1] < 2:
        return
    bound = slots.shape[1] ** 2 / 2.0 * min(1.0, 2.0 * law.largest_mass) ** len(slots)
    repeated = len(np.unique(slots.T, axis=0)) < slots.shape[1]
    tally.add("the same noise in two places of every run", min(1.0, bound) if repeated else 1.0)


def _repeated_runs(tally: CheckTally, law: NoiseLaw, seen: Observed) -> None:
    """Runs of the second half whose first numbers were those of a run of the first half: binomial, its chance known."""
    slots = _slots(seen.noise, seen)
    if slots is None or len(slots) < 100:
        return
    begins = slots[:, :8]
    if begins.shape[1] < 2:
        return
    half = len(begins) // 2
    known = np.unique(begins[:half], axis=0)
    chance = float(np.minimum(1.0, law.masses(known).prod(axis=1).sum()))
    before = {row.tobytes() for row in known}
    hits = sum(row.tobytes() in before for row in np.ascontiguousarray(begins[half:]))
    tally.add("runs that begin alike", stats.binom.sf(hits - 1, len(begins) - half, chance))


def _repeated_numbers(tally: CheckTally, law: NoiseLaw, noise: Numbers) -> None:
    """Numbers that one half of the draws holds too often, counted in the other half: few states give few numbers."""
    half = len(noise) // 2
    if half < 1000:
        return
    numbers, counts = np.unique(noise[:half], return_counts=True)
    masses = law.masses(numbers)
    frequent = counts > half * masses
    chance = float(min(1.0, masses[frequent].sum()))
    hits = int(np.isin(noise[half:], numbers[frequent]).sum())
    tally.add("numbers that return", stats.binom.sf(hits - 1, len(noise) - half, chance))


def _remainders(tally: CheckTally, law: NoiseLaw, noise: Numbers) -> None:
    """No remainder is too frequent: P(N ≡ r mod m) ≤ 1/m + p for a unimodal distribution of largest mass p."""
    if len(noise) < 100:
        return
    whole = noise.astype(np.int64)
    for modulus in MODULI:
        most = int(np.bincount(whole % modulus, minlength=modulus).max())
        bound = min(1.0, 1.0 / modulus + law.largest_mass)
        tally.add(f"remainders modulo {modulus}", modulus * stats.binom.sf(most - 1, len(whole), bound))
    common = int(np.gcd.reduce(np.abs(whole - whole[0])))
    # Σ over primes p of (1/p + largest)^(n−1): under 2^20 primes matter, as a draw has fewer bits than that beyond.
    alone = 2.0**20 * min(1.0, 0.5 + law.largest_mass) ** (len(whole) - 1)
    tally.add("all noise lies on a coarser lattice", min(1.0, alone) if common != 1 else 1.0)
