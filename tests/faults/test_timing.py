"""Which step is in flight at a kill depends on its batch; nothing that is published may. The attack: `timing.py`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from timing import attack  # noqa: E402


def test_kills_show_no_batch() -> None:
    """The files are those of an undisturbed run with the same keys, and membership keeps its law."""
    shown = attack("made again", 12)
    assert shown.in_flight_with > 0.5 * shown.kills  # the timing is there to be published
    assert (shown.marked, shown.drawn_twice, shown.keys_left, shown.other_files) == (0, 0, 0, 0)
    assert shown.p_batches > 1e-6


def test_burnt_steps_show_batches() -> None:
    """What a lost key costs, and why the card then states an assumption."""
    shown = attack("burnt", 10)
    assert shown.p_marked < 1e-9


def test_steps_drawn_anew_show_by_their_batches() -> None:
    shown = attack("drawn anew", 30)
    assert shown.drawn_twice > 0
    assert shown.p_batches < 1e-3
