"""The result of a search, as plain data, cached for the user by its request. Public numbers only."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpzo.data.owned import make_folders
from dpzo.errors import DpzoError
from dpzo.noise.table import LatticeNoise

VERSION = 1
"""Of the search: another one asks anew."""
NO_GAIN = 0.99
"""A noise whose cost is not below this share of the Gaussian's is not worth another mechanism."""


@dataclass(frozen=True)
class Found:
    """A family's best member. `ratio`: its cost ÷ the Gaussian's, by the objective; `variance` in clip_norm².

    `epsilon_certified`: ε of its table by direct convolution (of "gaussian": of continuous noise by its accountant).
    """

    ratio: float
    variance_ratio: float
    variance: float
    parameters: Mapping[str, Any]
    epsilon_certified: float


@dataclass(frozen=True)
class SearchResult:
    """All families at one (ε, δ, q, T), by name; `refused`: those that do not attain it, and why.

    `winner` is "gaussian" unless another costs less than NO_GAIN of it; then `noise` is the winner's table.
    """

    epsilon: float
    delta: float
    sampling_prob: float
    steps: int
    objective: str
    families: Mapping[str, Found]
    refused: Mapping[str, str]
    winner: str
    noise: LatticeNoise | None

    @property
    def gain(self) -> str:
        """The verdict in one line."""
        if self.noise is None:
            best = min((name for name in self.families if name != "gaussian"), key=self._ratio, default=None)
            near = "" if best is None else f" (the best other, {best}: {self._ratio(best):.3f} of its {self._what})"
            return f"no gain, Gaussian{near}"
        return f"{self.winner}: {self._ratio(self.winner):.4g} of the Gaussian's {self._what}"

    def _ratio(self, name: str) -> float:
        return self.families[name].ratio

    @property
    def _what(self) -> str:
        what = {"variance": "variance", "absolute": "mean absolute error"}
        return what.get(self.objective, "share of draws that are too far")

    def to_dict(self) -> dict[str, Any]:
        """The data that `dpzo noise --json` prints and the cache holds."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "sampling_prob": self.sampling_prob,
            "steps": self.steps,
            "objective": self.objective,
            "families": {name: {**found.__dict__} for name, found in self.families.items()},
            "refused": dict(self.refused),
            "winner": self.winner,
            "noise": None if self.noise is None else self.noise.to_dict(),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SearchResult:
        """The inverse of `to_dict`; the table is checked again."""
        noise = None if fields["noise"] is None else LatticeNoise.from_dict(fields["noise"])
        families = {name: Found(**found) for name, found in fields["families"].items()}
        return cls(**{**fields, "families": families, "noise": noise})


def cached(asked: Mapping[str, Any], work: Callable[[], SearchResult]) -> SearchResult:
    """The result for `asked` from the cache, else from `work`; it is then cached if the disk allows.

    The folder is $XDG_CACHE_HOME/dpzo/noise, or ~/.cache/dpzo/noise. An entry that does not hold what was asked, byte
    for byte as it was written, is computed again.
    """
    asked = {"version": VERSION, **asked}
    name = hashlib.sha256(_plain(asked)).hexdigest()
    path = folder() / f"{name}.json"
    try:
        entry = json.loads(path.read_bytes())
        if entry["asked"] == asked and entry["hash"] == hashlib.sha256(_plain(entry["result"])).hexdigest():
            return SearchResult.from_dict(entry["result"])
    except (OSError, ValueError, KeyError, TypeError, DpzoError):
        pass
    found = work()
    result = found.to_dict()
    entry = {"asked": asked, "hash": hashlib.sha256(_plain(result)).hexdigest(), "result": result}
    try:
        make_folders(path.parent)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.touch(mode=0o600)  # not private, but anyone who can write it could substitute another noise
        scratch.write_bytes(_plain(entry))
        scratch.replace(path)
    except OSError:
        pass  # without a writable cache, the only effect is a longer search
    return found


def folder() -> Path:
    """The folder of cached results."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(chosen) if chosen.startswith("/") else Path.home() / ".cache"
    return root / "dpzo" / "noise"


def _plain(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
