"""From finished cells to one table: means, standard errors, and the methods not distinguishable from the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

LOWER_IS_BETTER = frozenset({"loss"})
TIE = 2.0
"""Standard errors of a difference within which two means are a tie."""


@dataclass(frozen=True)
class Entry:
    """A method at one ε on one task. `mean` and `standard_error` in the metric's unit; no error for one seed.

    `marked`: the best of its task and ε among methods with an ε, or not distinguishable from it: see `mark`.
    """

    task: str
    metric: str
    method: str
    epsilon: float | None
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    guarantee: str
    evaluations: str
    marked: bool = False

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return math.fsum(self.values) / len(self.values)

    @property
    def standard_error(self) -> float | None:
        """s/√n of n ≥ 2 seeds."""
        return standard_error(self.values)


def standard_error(values: Sequence[float]) -> float | None:
    """√(Σ(x − mean)²/(n − 1)/n); None for fewer than two.

    >>> standard_error([1.0, 3.0])
    1.0
    """
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def entries(results: Iterable[Mapping[str, Any]]) -> tuple[Entry, ...]:
    """One entry for each task, method and ε, in the order of their first cells, marked."""
    groups: dict[tuple[str, str, float | None], list[Mapping[str, Any]]] = {}
    for result in results:
        cell = result["cell"]
        groups.setdefault((cell["task"][0], cell["name"], cell["epsilon"]), []).append(result)
    made = [
        Entry(
            task=task,
            metric=found[0]["score"]["metric"],
            method=name,
            epsilon=epsilon,
            seeds=tuple(result["cell"]["seed"] for result in found),
            values=tuple(result["score"]["value"] for result in found),
            guarantee=guarantee(found[0]["card"]),
            evaluations=_cost(found[0]["evaluations_per_record"]),
        )
        for (task, name, epsilon), found in groups.items()
    ]
    return mark(made)


def mark(made: Sequence[Entry]) -> tuple[Entry, ...]:
    """Mark, for each task and ε, the best mean and all means within 2 standard errors of the difference from it.

    |m − m_best| ≤ 2·√(s² + s_best²). Runs of different methods are treated as independent, which errs on the side of a
    tie if they share a split. With one seed there is no error: only the best is marked, and ties are not assessed.
    """
    best: dict[tuple[str, float], Entry] = {}
    for entry in made:
        if entry.epsilon is not None:
            key = (entry.task, entry.epsilon)
            if key not in best or _gain(entry) > _gain(best[key]):
                best[key] = entry
    return tuple(
        entry if entry.epsilon is None else _with_mark(entry, tied(entry, best[entry.task, entry.epsilon]))
        for entry in made
    )


def tied(entry: Entry, best: Entry) -> bool:
    """Whether `entry` is the best or not distinguishable from it."""
    if entry.method == best.method or entry.mean == best.mean:
        return True
    if entry.standard_error is None or best.standard_error is None:
        return False
    return abs(entry.mean - best.mean) <= TIE * math.hypot(entry.standard_error, best.standard_error)


def guarantee(card: Mapping[str, Any]) -> str:
    """A card's guarantee, in two or three words."""
    if card["guarantee"]:
        return "ε exact" if card["delta"] else "pure ε, exact"
    level = card.get("level")
    return {"float-noise": "ε in real arithmetic", "zero-shot": "no record read"}.get(str(level), "none")


def to_json(made: Sequence[Entry]) -> list[dict[str, Any]]:
    """The entries as plain data, the best first in the text's order, nothing rounded."""
    return [{**asdict(entry), "mean": entry.mean, "standard_error": entry.standard_error} for entry in made]


def to_markdown(made: Sequence[Entry], heading: Sequence[str] = ()) -> str:
    """One table per task: a row per method, a column per ε and one for no ε. Points of 100, except for a loss."""
    lines = [*heading, ""] if heading else []
    for task in dict.fromkeys(entry.task for entry in made):
        own = [entry for entry in made if entry.task == task]
        levels = sorted({entry.epsilon for entry in own if entry.epsilon is not None})
        open_ended = any(entry.epsilon is None for entry in own)
        columns = [*(f"ε = {level:g}" for level in levels), *(["no privacy"] if open_ended else [])]
        lines += [f"## {task} ({own[0].metric})", ""]
        lines.append("| " + " | ".join(["method", *columns, "guarantee", "evaluations a record", "seeds"]) + " |")
        lines.append("|" + "---|" * (len(columns) + 4))
        for method in dict.fromkeys(entry.method for entry in own):
            its = {entry.epsilon: entry for entry in own if entry.method == method}
            first = next(iter(its.values()))
            shown = [_cell(its.get(level)) for level in [*levels, *([None] if open_ended else [])]]
            count = "/".join(dict.fromkeys(str(len(entry.seeds)) for entry in its.values()))
            lines.append(f"| {' | '.join([method, *shown, first.guarantee, first.evaluations, count])} |")
        lines.append("")
    lines += [
        "Mean ± standard error over seeds"
        + (" (one seed: no error, so ties cannot be told)." if any(len(entry.seeds) < 2 for entry in made) else ".")
        + " **Bold**: the best at that ε, and every mean within two standard errors of the difference from it.",
        "Evaluations a record: forward passes of a training record, on average; f+b: forward and backward passes.",
        "",
    ]
    return "\n".join(lines)


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return "–"
    scale, digits = (1.0, 3) if entry.metric in LOWER_IS_BETTER else (100.0, 1)
    error = entry.standard_error
    text = f"{scale * entry.mean:.{digits}f}" + ("" if error is None else f" ± {scale * error:.{digits}f}")
    return f"**{text}**" if entry.marked else text


def _cost(counts: Mapping[str, float]) -> str:
    if counts["backward"] > 0:
        return f"{counts['backward']:.0f} f+b"
    return f"{counts['forward']:.0f}"


def _gain(entry: Entry) -> float:
    return -entry.mean if entry.metric in LOWER_IS_BETTER else entry.mean


def _with_mark(entry: Entry, marked: bool) -> Entry:
    return Entry(**{**asdict(entry), "marked": marked})
