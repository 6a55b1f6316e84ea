"""The demo's messages: the same everywhere for one seed, all different, and no global generator is touched."""

from __future__ import annotations

import hashlib
import random
import stat
from pathlib import Path

import numpy as np
import pytest

from dpzo.data.tasks import DEMO, Records, demo_messages, load_records, write_csv
from dpzo.data.tasks.demo_data import DEMO_LABELS, NUM_TEST, NUM_TRAIN
from dpzo.data.tasks.demo_words import INTENTS
from dpzo.errors import DpzoError


@pytest.fixture(scope="module")
def messages() -> tuple[Records, Records]:
    return demo_messages(0)


def _digest(records: Records) -> str:
    assert records.labels is not None
    whole = "\x1e".join(f"{label}\x1f{text}" for text, label in zip(records.texts, records.labels, strict=True))
    return hashlib.sha256(whole.encode()).hexdigest()


def test_one_seed_gives_one_data_set(messages: tuple[Records, Records]) -> None:
    assert _digest(messages[0]) == "5eb7b13f160ea5018f62f0c303febce0171267270fae6246e4022347572e6d96"
    assert _digest(messages[1]) == "d3e1909208457ca3ee678429d0fdd527ae4ee40584d7b2e84f0e6ddd7c69d8fe"
    assert _digest(demo_messages(1, 50, 0)[0]) != _digest(demo_messages(0, 50, 0)[0])


def test_sizes_and_balance(messages: tuple[Records, Records]) -> None:
    train, test = messages
    assert (len(train), len(test)) == (NUM_TRAIN, NUM_TEST)
    assert train.labels is not None
    assert test.labels is not None
    # Chance is 12.5 %: 3000 draws of 8 labels stay within 4 standard deviations, 375 ± 73.
    counts = np.bincount(train.labels, minlength=len(DEMO_LABELS))
    assert counts.min() > 302
    assert counts.max() < 448
    assert set(test.labels.tolist()) == set(range(len(DEMO_LABELS)))


def test_no_message_occurs_twice_and_some_phrasings_are_new_to_the_test(messages: tuple[Records, Records]) -> None:
    train, test = messages
    assert len({*train.texts, *test.texts}) == NUM_TRAIN + NUM_TEST
    phrase = INTENTS["invoice"].test[1].split("{")[0]
    assert any(phrase in text for text in test.texts)
    assert not any(phrase in text for text in train.texts)


def test_personal_details_are_planted_and_every_slot_is_filled(messages: tuple[Records, Records]) -> None:
    train, _ = messages
    assert not any("{" in text or "}" in text for text in train.texts)
    for mark in ("@example.org", "-555-01", "#"):
        assert sum(mark in text for text in train.texts) > 300


def test_global_generators_are_left_alone() -> None:
    before = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[union-attr]  # noqa: NPY002
    demo_messages(3, 20, 20)
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[arg-type]  # noqa: NPY002


def test_what_is_written_is_read_back_by_the_task_and_as_an_own_file(tmp_path: Path) -> None:
    train, test = demo_messages(5, 40, 10)
    write_csv(tmp_path / "demo_train.csv", train)
    write_csv(tmp_path / "demo_test.csv", test)
    assert _digest(DEMO.load(tmp_path, "train")) == _digest(train)
    assert _digest(load_records(tmp_path / "demo_test.csv", labels=DEMO_LABELS)) == _digest(test)
    assert stat.S_IMODE((tmp_path / "demo_test.csv").stat().st_mode) == 0o600
    with pytest.raises(DpzoError, match="exists already"):
        write_csv(tmp_path / "demo_test.csv", test)
    with pytest.raises(DpzoError, match="cannot be written"):
        write_csv(tmp_path / "none" / "demo.csv", test)
