"""Nothing of a record, and not how many there are, in any file, output or error: commands run, everything read."""

from __future__ import annotations

import base64
import gzip
import json
import os
import random
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).resolve().parents[1] / "doubles" / "command_line.py"
MARK = "zqj7xk"
"""Every word of every record begins with it, and nothing else does."""
NUM_RECORDS, NUM_UNITS, DECLARED = 1361, 1187, 1300
COUNTS = (NUM_RECORDS, NUM_UNITS)


def _encodings(mark: str) -> list[bytes]:
    """How a word that begins with `mark` would look in bytes: wide text, hex, base64 at any alignment."""
    plain, aligned = mark.encode(), []
    for pad in range(3):  # the characters of base64 that depend on the mark alone, after `pad` other bytes
        whole = base64.b64encode(bytes(pad) + plain)
        aligned.append(whole[-(-8 * pad // 6) : 8 * (pad + len(plain)) // 6])
    return [mark.encode("utf-16-le"), plain.hex().encode(), *aligned]


MARKS = re.compile(b"|".join(map(re.escape, _encodings(MARK))))
NUMBERS = re.compile("|".join(rf"(?<![\w.]){n}(?![\w.])|(?<!\d){n // 1000}[, ]{n % 1000:03}(?!\d)" for n in COUNTS))
RELEASED = re.compile(r'"values":\[[^\]]*\]')


def leaks(name: str, content: bytes) -> Iterator[str]:
    """What a file or a stream tells of the records."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if MARKS.search(content) or MARK.encode() in content.lower():
        yield f"{name}: holds a word of a record"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return  # among arbitrary bytes a number is found by chance
    if NUMBERS.search(RELEASED.sub("", text)):  # a noisy sum may be any number
        yield f"{name}: holds the number of records or units"


@dataclass(frozen=True)
class Place:
    """A scratch home for processes, and a folder of private files that is not searched."""

    scratch: Path
    private: Path

    def run(self, *steps: dict[str, Any]) -> tuple[list[int], bytes, bytes]:
        """Exit codes, standard output and standard error of commands run with everything pointed at the scratch."""
        plan, codes = self.private / "steps.json", self.private / "codes.json"
        plan.write_text(json.dumps(steps))
        places = {name: self.scratch / name.lower() for name in ("TMPDIR", "HOME", "HF_HOME", "XDG_CACHE_HOME")}
        for path in places.values():
            path.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, str(DRIVER), str(plan), str(codes)],
            env={**os.environ, **{name: str(path) for name, path in places.items()}, "HF_HUB_OFFLINE": "1"},
            cwd=self.scratch,
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(codes.read_text()), done.stdout, done.stderr

    def leaks(self, *streams: bytes) -> list[str]:
        found = [leak for number, stream in enumerate(streams) for leak in leaks(f"stream {number}", stream)]
        for path in sorted(self.scratch.rglob("*")):
            assert MARK not in path.name
            if path.is_file() and path.name != "local.yaml":
                found += leaks(str(path.relative_to(self.scratch)), path.read_bytes())
        return found


def _words(draw: random.Random, count: int) -> str:
    return " ".join(MARK + "".join(draw.choices(string.ascii_lowercase, k=5)) for _ in range(count))


def _rows() -> list[dict[str, str]]:
    draw = random.Random(1)
    owners = [*range(NUM_UNITS), *(draw.randrange(NUM_UNITS) for _ in range(NUM_RECORDS - NUM_UNITS))]
    return [
        {
            # Some far longer than the declared length: libraries like to warn about these, with a figure.
            "text": _words(draw, 200 if number % 100 == 0 else 3),
            "label": draw.choice(["good", "bad"]),
            "person": f"{MARK}person{owner}",
            "prompt": _words(draw, 2),
            "completion": _words(draw, 1),
        }
        for number, owner in enumerate(owners)
    ]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for name in ("scratch", "private"):
        (tmp_path / name).mkdir()
    rows = _rows()
    (tmp_path / "private" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Place(tmp_path / "scratch", tmp_path / "private")


def _train(place: Place, model: Path, output: str, data: str = "train.jsonl", *more: str) -> list[str]:
    return [
        *("train", "--model", str(model), "--data", str(place.private / data), "--output", output),
        *("--noise-multiplier", "3", "--delta", "1e-4", "--num-examples", str(DECLARED), "--steps", "6"),
        *("--expected-batch-size", "20", "--num-directions", "2", "--set", "training.microbatch_size=8"),
        *("--max-length", "16", *more),
    ]


CLASSES = ("--labels", "good,bad")
COMPLETIONS = ("--kind", "completion", "--set", "data.max_answer_tokens=4")
BROKEN: dict[str, bytes] = {
    "zero.jsonl": f'{{"text": "{MARK}a\0", "label": "good"}}\n'.encode(),
    "broken.jsonl": f'{{"text": "{MARK}a", "label": "good"}}\n{{"text": "{MARK}b", "lab\n'.encode(),
    "list.jsonl": f'["{MARK}a", "{MARK}b"]\n'.encode(),
    "number.jsonl": f'{{"text": ["{MARK}a"], "label": "good"}}\n'.encode(),
    "unknown.jsonl": f'{{"text": "{MARK}a", "label": "{MARK}b"}}\n'.encode(),
    "latin.csv": f"text,label\n{MARK}é,good\n".encode("latin-1"),
    "more.csv": f"text,label\n{MARK}a,{MARK}b,good\n".encode(),
    "open.csv": f'text,label\n"{MARK}a,good\n'.encode(),
    "headless.csv": f"{MARK}a,{MARK}b\n{MARK}c,good\n".encode(),
    "twice.csv": f"text,{MARK}a,{MARK}a\n{MARK}c,good,d\n".encode(),
}


def test_commands_over_unique_records_leave_no_trace_of_them(place: Place, tiny_bert: Path, tiny_llama: Path) -> None:
    data = str(place.private / "train.jsonl")
    codes, out, err = place.run(
        {
            "arguments": _train(place, tiny_bert, "a", "train.jsonl", *CLASSES, "--unit-column", "person"),
            "interrupt": 2,
        },
        {"arguments": ["resume", "a"]},
        {"arguments": ["replay", "a", "--output", "again"]},
        {"arguments": ["evaluate", "a", "--data", data, "--data-is", "private"]},
        {"arguments": _train(place, tiny_llama, "b", "train.jsonl", *COMPLETIONS, "--json")},
        {"arguments": ["replay", "b", "--output", "b-again", "--json"]},
        {"arguments": _train(place, tiny_bert, "c", "train.jsonl", *CLASSES), "plant": "raise"},
    )
    assert codes == [130, 0, 0, 0, 0, 0, 1]
    assert b"stopped after step 3 of 6; continue with dpzo resume" in err
    assert b"equal to the run's, bit for bit" in out
    assert b"internal error: RuntimeError in command_line.py" in err
    assert (place.scratch / "b" / "privacy_card.md").is_file()
    assert place.leaks(out, err) == []
    local = list(place.scratch.rglob("local.yaml"))
    assert len(local) == 2
    assert all(path.stat().st_mode & 0o077 == 0 for path in local)
    assert not any(leak for path in local for leak in leaks(path.name, path.read_bytes()))


def test_errors_about_records_show_none_of_them(place: Place, tiny_bert: Path) -> None:
    for name, content in BROKEN.items():
        (place.private / name).write_bytes(content)
    codes, out, err = place.run(
        *({"arguments": _train(place, tiny_bert, name, name, *CLASSES)} for name in BROKEN),
        {"arguments": ["evaluate", "none", "--data", str(place.private / "zero.jsonl"), "--data-is", "public"]},
    )
    assert codes == [2] * (len(BROKEN) + 1)
    lines = err.decode().splitlines()
    errors = [line for line in lines if line.startswith("dpzo: error: ")]
    assert len(errors) == len(codes)
    assert all(name in line for name, line in zip(BROKEN, errors, strict=False))
    assert "Traceback" not in err.decode()
    assert place.leaks(out, err) == []
    assert not any((place.scratch / name).exists() for name in BROKEN)


def test_a_planted_leak_is_found(place: Place, tiny_bert: Path) -> None:
    plants = ("print", "count", "pickle", "sqlite")
    codes, out, err = place.run(
        *({"arguments": _train(place, tiny_bert, plant, "train.jsonl", *CLASSES), "plant": plant} for plant in plants)
    )
    assert codes == [0] * len(plants)
    found = place.leaks(out, err)
    assert "stream 0: holds a word of a record" in found
    assert "stream 1: holds the number of records or units" in found
    assert any(leak.startswith("tmpdir/") for leak in found)
    assert "home/cache.db: holds a word of a record" in found
    assert len(found) == 4


WORD = MARK + "secret"


@pytest.mark.parametrize(
    "content",
    [
        WORD.encode(),
        WORD.upper().encode(),
        json.dumps(["ü", WORD]).encode(),
        WORD.encode("utf-16"),
        ("\0\xff" + WORD).encode("latin-1"),
        WORD.encode().hex().encode(),
        *(base64.b64encode(b"x" * pad + WORD.encode()) for pad in range(6)),
        gzip.compress(WORD.encode(), mtime=0),
        f"N={NUM_RECORDS}".encode(),
        f'{{"units": {NUM_UNITS}}}'.encode(),
        b"1,361 records",
        f"-{NUM_RECORDS}".encode(),
    ],
)
def test_the_scanner_sees_a_leak_in_any_dress(content: bytes) -> None:
    assert list(leaks("x", content))


@pytest.mark.parametrize(
    "content",
    [b"", MARK[:-1].encode(), b"0.1361", b"13610", b"a1361b", b'{"hash":"1","values":[1361,-1187]}', bytes(range(256))],
)
def test_the_scanner_lets_the_rest_pass(content: bytes) -> None:
    assert list(leaks("x", content)) == []
