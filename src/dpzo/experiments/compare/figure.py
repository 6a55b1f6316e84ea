"""The table as a figure: score against ε, one panel per task, error bars of one standard error."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpzo.experiments.compare.table import LOWER_IS_BETTER, Entry
from dpzo.models.quiet import silent_libraries

NEEDS = "figure.png is left out: pip install 'dpzo[figure]' and give the command again; finished cells are kept"


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(entries: Sequence[Entry], path: Path) -> None:
    """Write a PNG; needs no display. Methods with an ε are lines over ε, the others dashed levels."""
    with silent_libraries():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    tasks = list(dict.fromkeys(entry.task for entry in entries))
    methods = list(dict.fromkeys(entry.method for entry in entries))
    figure = Figure(figsize=(4.6 * len(tasks) + 1.8, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    for place, task in enumerate(tasks):
        panel = figure.add_subplot(1, len(tasks), place + 1)
        _panel(panel, [entry for entry in entries if entry.task == task], methods)
        panel.set_title(task)
    handles: dict[str, Any] = {}
    for panel in figure.axes:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize="small", frameon=False)
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})


def _panel(panel: Any, entries: Sequence[Entry], methods: Sequence[str]) -> None:
    from matplotlib import colormaps

    scale = 1.0 if entries[0].metric in LOWER_IS_BETTER else 100.0
    levels = sorted({entry.epsilon for entry in entries if entry.epsilon is not None})
    for number, method in enumerate(methods):
        own = [entry for entry in entries if entry.method == method]
        noisy = [entry for entry in own if entry.epsilon is not None]
        style: dict[str, Any] = {"color": colormaps["tab20"](number % 20), "label": method}
        if noisy:
            panel.errorbar(
                # Side by side, so that the bars do not hide one another.
                [entry.epsilon * 1.02 ** (number - len(methods) / 2) for entry in noisy if entry.epsilon is not None],
                [scale * entry.mean for entry in noisy],
                yerr=[0.0 if entry.standard_error is None else scale * entry.standard_error for entry in noisy],
                marker="os^vD<>ph*"[number % 10],
                markersize=4,
                linewidth=1,
                capsize=2,
                **style,
            )
        for entry in own:
            if entry.epsilon is None:
                panel.axhline(scale * entry.mean, linestyle="--", linewidth=1, **style)
    if levels:
        panel.set_xscale("log")
        panel.set_xlim(levels[0] / 1.6, levels[-1] * 1.6)
        panel.set_xticks(levels, [f"{level:g}" for level in levels])
        panel.minorticks_off()
    panel.set_xlabel("ε")
    panel.set_ylabel(entries[0].metric)
