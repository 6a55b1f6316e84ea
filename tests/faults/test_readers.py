"""Whatever a file holds, its reader either succeeds or says in one line what is wrong; it never shows what it read."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpzo.audit.plans import plan_of
from dpzo.config.reading import dump_config, load_config, parse_config
from dpzo.config.schema import DataConfig
from dpzo.config.solve import plan_summary
from dpzo.data import own_chat, read_records
from dpzo.data.tasks import own_classification, own_completion, read_task_file
from dpzo.data.tasks.readers import READERS
from dpzo.errors import DpzoError
from dpzo.privacy import FullBatch, Gaussian, PrivacyPlan, Release, lattice
from dpzo.report import build_card, render_markdown, write_card
from dpzo.run.journal import HEAD, JOURNAL, Journal, read
from dpzo.run.private_count import PrivateCount
from dpzo.verify import verify
from dpzo.verify.signature import shipped

MARK = "zqj7xk"
EXAMPLES = 25 * int(os.environ.get("DPZO_FUZZ", "1"))
fuzzed = settings(
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Hangs(BaseException):
    """Nothing in the program catches it."""


@contextmanager
def ending(seconds: int = 120) -> Iterator[None]:
    """The block ends in time; a reader that hangs is a fault as any other."""

    def alarm(number: int, frame: object) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, alarm)
    left = signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(left)
        signal.signal(signal.SIGALRM, before)


def well(act: Callable[[], object], *private: str) -> bool:
    """Whether `act` succeeds; else it must raise DpzoError, of one line, that shows nothing private."""
    try:
        with ending():
            act()
    except DpzoError as error:
        said = str(error)
        assert said
        assert "\n" not in said
        assert len(said) < 2000
        for text in (MARK, *private):
            assert text not in said, said
        return False
    except Hangs:
        raise AssertionError("it hangs") from None
    return True


@st.composite
def spoilt(draw: st.DrawFn, whole: bytes) -> bytes:
    """A good file with bytes changed, cut, doubled, moved or put in; or rubbish alone."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        end = min(len(content), place + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(("flip", "cut", "put", "double", "tail", "word")))
        if kind == "flip" and place < len(content):
            content[place] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del content[place:end]
        elif kind == "put":
            content[place:place] = draw(st.binary(min_size=1, max_size=12))
        elif kind == "double":
            content[place:place] = content[place:end]
        elif kind == "tail":
            del content[place:]
        else:
            content[place:end] = draw(st.sampled_from(WORDS))
    return bytes(content)


WORDS = [
    *(b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"true", b"null", b"[]", b"{}", b'""', b"\x00", b"\xff\xfe"),
    *(b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"\xed\xa0\x80", b"\r", b"\n\n", b'"', b"\t", b",", b"\xef\xbb\xbf"),
    *(b"2001-99-99", b"!!timestamp x", b"!!int ''", b"!!bool x", b"!!binary a", b"&a [*a]", b"*a", b"? {}", b"\\ud800"),
]


def some_json(leaves: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[Any]:
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(MARK)
    return st.recursive(
        plain if leaves is None else leaves | plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        max_leaves=6,
    )


@st.composite
def altered(draw: st.DrawFn, tree: Any) -> Any:
    """A tree of plain values with one place in it replaced, left out or added to."""
    if isinstance(tree, dict) and tree and draw(st.integers(0, 5)) > 0:
        key = draw(st.sampled_from(sorted(tree)))
        kind = draw(st.sampled_from(("within", "within", "drop", "add")))
        if kind == "drop":
            return {name: value for name, value in tree.items() if name != key}
        if kind == "add":
            return {**tree, draw(st.text(max_size=6)): draw(some_json())}
        return {**tree, key: draw(altered(tree[key]))}
    if isinstance(tree, list) and tree and draw(st.booleans()):
        place = draw(st.integers(0, len(tree) - 1))
        return [*tree[:place], draw(altered(tree[place])), *tree[place + 1 :]]
    return draw(some_json())


# --- private records

ROWS = [
    {
        "text": f"{MARK} {i}",
        "label": ("calm", "loud")[i % 2],
        "who": f"{MARK}p{i // 2}",
        "prompt": f"{MARK} {i}",
        "completion": f" {MARK}{i}",
        "messages": [{"role": "user", "content": f"{MARK}?"}, {"role": "assistant", "content": f"{MARK}!"}],
    }
    for i in range(4)
]


def _delimited(delimiter: str) -> bytes:
    names = ["text", "label", "who", "prompt", "completion"]
    lines = [delimiter.join(names)] + [delimiter.join(f'"{row[name]}"' for name in names) for row in ROWS]
    return "\n".join(lines).encode()


def _jsonl() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def _parquet(folder: Path) -> bytes:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "whole.parquet")
    return (folder / "whole.parquet").read_bytes()


def _gzip(folder: Path) -> bytes:
    import gzip

    return gzip.compress(_jsonl())


TABLES: dict[str, Callable[[Path], bytes]] = {
    "a.csv": lambda folder: _delimited(","),
    "a.tsv": lambda folder: _delimited("\t"),
    "a.jsonl": lambda folder: _jsonl(),
    "a.jsonl.gz": _gzip,
    "a.parquet": _parquet,
}
READS: dict[str, tuple[Any, DataConfig]] = {
    "classification": (own_classification(("calm", "loud")), DataConfig(unit_column="who", labels=("calm", "loud"))),
    "completion": (own_completion(), DataConfig(kind="completion")),
    "chat": (own_chat(), DataConfig(kind="chat")),
}


@pytest.mark.parametrize("name", TABLES)
@fuzzed
@given(data=st.data())
def test_private_records(tmp_path: Path, name: str, data: st.DataObject) -> None:
    path = tmp_path / name
    path.write_bytes(data.draw(spoilt(TABLES[name](tmp_path)), label="content"))
    kind = data.draw(st.sampled_from(sorted(READS)))
    task, config = READS[kind]
    well(lambda: read_records([path], task, config))


GOOD = [(name, kind) for name in TABLES for kind in READS if kind != "chat" or name not in ("a.csv", "a.tsv")]
"""A chat is a list, which those two formats have not."""


@pytest.mark.parametrize(("name", "kind"), GOOD)
def test_the_good_files_are_read(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(TABLES[name](tmp_path))
    task, config = READS[kind]
    assert len(read_records([path], task, config)) == len(ROWS)


@fuzzed
@given(rows=st.lists(altered(ROWS[0]), min_size=1, max_size=3), kind=st.sampled_from(sorted(READS)))
def test_records_of_any_shape(tmp_path: Path, rows: list[Any], kind: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task, config = READS[kind]
    well(lambda: read_records([path], task, config))


PUBLISHED = {
    "labelled-lines": f"1 {MARK} good\n".encode(),
    "trec": f"DESC:manner How {MARK}?\n".encode(),
    "last-label-tsv": f"index\tquestion\tlabel\n1\t{MARK}\t0\n".encode(),
    "numbered-json": json.dumps({"0": {"text": MARK}}).encode(),
    "squad": json.dumps(
        {
            "data": [
                {
                    "title": MARK,
                    "paragraphs": [{"context": MARK, "qas": [{"question": MARK, "answers": [{"text": MARK}]}]}],
                }
            ]
        }
    ).encode(),
    "drop-prompts": json.dumps(
        {"context": f"Passage: {MARK}\nQuestion: {MARK}\nAnswer:", "completion": MARK, "ref_text": MARK}
    ).encode(),
    "dart": json.dumps([{"tripleset": [[MARK, "b", "c"]], "annotations": [{"text": MARK}]}]).encode(),
    "multirc": json.dumps(
        {"passage": {"text": MARK, "questions": [{"question": MARK, "answers": [{"text": MARK, "label": 1}]}]}}
    ).encode(),
    "wsc": json.dumps({"text": MARK, "label": True, "target": {"span1_text": MARK, "span2_text": MARK}}).encode(),
}
SUFFIX = {"labelled-lines": ".txt", "trec": ".txt", "last-label-tsv": ".tsv"}


@pytest.mark.parametrize("name", READERS)
@fuzzed
@given(data=st.data())
def test_published_formats(tmp_path: Path, name: str, data: st.DataObject) -> None:
    lines = name in ("drop-prompts", "multirc", "wsc")
    path = tmp_path / f"a{SUFFIX.get(name, '.jsonl' if lines else '.json')}"
    if name in SUFFIX or data.draw(st.booleans()):
        content = data.draw(spoilt(PUBLISHED[name]), label="content")
    else:
        content = json.dumps(data.draw(altered(json.loads(PUBLISHED[name])))).encode()
    path.write_bytes(content)
    well(lambda: list(READERS[name](path)))


# --- configs and task files

CONFIG = {
    "model": {"name": "here", "trainable": "lora"},
    "data": {"labels": ["a", "b"], "task": {"kind": "classification", "template": "{text}", "labels": ["a", "b"]}},
    "privacy": {"delta": 1e-5, "epsilon": 2.0, "num_examples": 100, "steps": 10},
    "training": {"seed": 3, "learning_rate": 0.1, "average": 0.5},
}


@fuzzed
@given(data=st.data())
def test_configs(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "config.yaml"
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(spoilt(yaml.safe_dump(CONFIG).encode()), label="content"))
    else:
        path.write_text(yaml.safe_dump(data.draw(altered(CONFIG)), allow_unicode=True))

    def act() -> None:
        config = load_config(path, {})
        assert parse_config(yaml.safe_load(dump_config(config))) == config

    well(act)


@fuzzed
@given(text=st.text(max_size=30) | st.sampled_from(WORDS).map(lambda word: word.decode("latin-1")))
def test_assignments(text: str) -> None:
    for name in ("training.seed", "data.task", "privacy.num_examples", "data.labels"):
        well(lambda name=name: load_config(None, {}, [f"{name}={text}"]))  # type: ignore[misc]


BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i + 1}: &a{i + 1} [{f'*a{i}, ' * 9}]" for i in range(12))])
"""13 lines that stand for 9¹² texts."""


@pytest.mark.parametrize(
    "text",
    [
        *("a: 2001-99-99", "a: !!timestamp x", "a: !!int ''", "a: !!bool x", "a: !!float x", f"a: {'9' * 5000}"),
        *("model: &a [*a]", "? [a]\n: b", "a: !!python/object:os.system x", "[" * 5000, "a: 1:99999999999999999999"),
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{chr(b + 1)}: &{chr(b + 1)} [{f'*{chr(b)},' * 9}]\n" for b in range(97, 110)),
    ],
)
def test_yaml_that_is_hostile(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert not well(lambda: load_config(path, {}))
    assert not well(lambda: read_task_file(path))
    path.write_text("data:\n  task:\n" + "".join(f"    {line}\n" for line in text.split("\n")))
    assert not well(lambda: load_config(path, {}))


TASK = {
    "name": "tone",
    "kind": "classification",
    "template": "{text}",
    "labels": ["a", "b"],
    "label_words": [" bad", " good"],
    "max_length": 32,
    "metric": "accuracy",
    "example": {"text": "fine"},
}


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@fuzzed
@given(data=st.data())
def test_task_files(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"task{suffix}"
    write = json.dumps if suffix == ".json" else yaml.safe_dump
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(spoilt(write(TASK).encode()), label="content"))
    else:
        path.write_text(write(data.draw(altered(TASK))))
    well(lambda: read_task_file(path))


# --- what a run writes

PLAN = {
    "num_examples": 100,
    "sampling": "poisson",
    "sampling_prob": 0.1,
    "mechanism": "gaussian",
    "scale": 2.0,
    "clip_norm": 1.0,
    "steps": 9,
    "num_directions": 2,
    "delta": 1e-5,
    "relation": "zero_out",
}
HEADER: dict[str, Any] = {
    "plan": PLAN,
    "lattice_unit": 0.125,
    "secret_randomness": True,
    "num_examples_source": "declared",
    "unit_column": None,
    "tuning": "not declared",
    "count": None,
    "config": {"training": {"smoothing": 0.01, "estimator": "central"}},
    "evaluation": {"isolation": "passed", "head_block": None, "prefix": {"layers": 0, "keep": "none"}},
    "nonprivate_uses": [],
    "base": {"name": "here", "fingerprint": "0" * 64},
    "environment": {"python": "3"},
}


def run_folder(folder: Path, header: dict[str, Any], size: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    for name in (JOURNAL, HEAD):
        (folder / name).unlink(missing_ok=True)
    journal = Journal.create(folder, header)
    for step in range(3):
        journal.append(Release(step, (size * step, -size * step), header["lattice_unit"]))
    journal.close(clean=True)


def _card(folder: Path) -> None:
    transcript = read(folder)
    list(transcript.entries())
    render_markdown(build_card(transcript))


def test_the_good_run_has_a_card(tmp_path: Path) -> None:
    run_folder(tmp_path / "run", HEADER)
    assert well(lambda: _card(tmp_path / "run"))


# --- what a stranger ships beside a journal

SHIPPED = ("privacy_card.json", "privacy_card.md", "plan.json", "journal.sums", "journal.sig")


def _stranger(folder: Path) -> Path:
    """A run of a module with its card and plan, and sums that are signed by nobody."""
    plan = PrivacyPlan(100, FullBatch(), Gaussian(2.0), 1.0, 9, 2, 1e-5)
    grid = lattice(plan.mechanism, plan.clip_norm, plan.num_directions)
    header = {name: value for name, value in HEADER.items() if name not in ("config", "count")}
    header |= {"plan": plan.to_dict(), "settings": {}, "directions": {"kind": "rademacher"}, "estimator": "central"}
    header["evaluation"] = {"microbatch_size": 4, "isolation": "passed"}
    header |= {"update": {"rule": "sgd"}, "parameters": [["weight", [2, 1], "float32"]]}
    header |= {"lattice_unit": grid.unit, "lattice_bits": grid.bits, "lattice_bound": grid.bound}
    run_folder(folder, header, 2**grid.bits)
    (folder / "plan.json").write_text(json.dumps(plan_summary(plan), indent=2) + "\n")
    write_card(folder, read(folder))
    sums = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in shipped(folder))
    (folder / "journal.sums").write_text(sums)
    (folder / "journal.sig").write_text("-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n")
    return folder


@pytest.fixture
def no_second_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the plan alone, and takes its time."""
    monkeypatch.setattr("dpzo.verify.papers.second_bracket", lambda plan: "left out")


@pytest.mark.usefixtures("no_second_accountant")
def test_the_good_folder_is_taken_but_for_its_signature(tmp_path: Path) -> None:
    run = _stranger(tmp_path / "run")
    assert [check.name for check in verify(run).checks if check.ok is False] == ["signature"]
    (run / "journal.sums").unlink()
    (run / "journal.sig").unlink()
    assert verify(run).ok


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.usefixtures("no_second_accountant")
@settings(fuzzed, max_examples=max(1, EXAMPLES // 2))
@given(data=st.data())
def test_a_strangers_folder(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Verifying never breaks off: whatever stands in a file, a check says it in one printable line."""
    run = _stranger(tmp_path / "run")
    if not name.startswith("journal."):
        (run / "journal.sums").unlink()
        (run / "journal.sig").unlink()
    whole = (run / name).read_bytes()
    changed = data.draw(spoilt(whole), label="content")
    (run / name).write_bytes(changed)
    with ending():
        report = verify(run)
    assert all(check.detail.isprintable() for check in report.checks)
    bad = [check.name for check in report.checks if check.ok is False]
    if name.startswith("journal."):
        assert bad == ["signature"]
    elif changed != whole:
        # Only a last digit of an ε may be another machine's.
        lines = zip(changed.split(b"\n"), whole.split(b"\n"), strict=False)
        assert bad or all(one == two or b"epsilon" in two or "ε = ".encode() in two for one, two in lines)


@pytest.mark.parametrize("name", [JOURNAL, HEAD])
@fuzzed
@given(data=st.data())
def test_journals_and_heads(tmp_path: Path, name: str, data: st.DataObject) -> None:
    run_folder(tmp_path / "run", HEADER)
    path = tmp_path / "run" / name
    whole = path.read_bytes()
    changed = data.draw(spoilt(whole), label="content")
    path.write_bytes(changed)
    accepted = well(lambda: read(tmp_path / "run"))
    if name == JOURNAL and accepted:
        # What is accepted holds all that the head knows; beyond it a torn line, which says nothing.
        assert changed.startswith(whole)
    taken = well(lambda: Journal.reopen(tmp_path / "run").close(clean=True))
    assert taken == accepted


@fuzzed
@given(header=altered(HEADER))
def test_headers_with_a_good_hash(tmp_path: Path, header: Any) -> None:
    """Whoever forges a header can compute its hash: what reads it may refuse it, and does nothing else."""
    if not isinstance(header, dict):
        header = {"plan": header}
    well(lambda: _forge(tmp_path / "run", header))
    well(lambda: _card(tmp_path / "run"))


def _forge(folder: Path, header: dict[str, Any]) -> None:
    from dpzo.run.journal import FORMAT
    from dpzo.run.journal_line import canonical, chain

    folder.mkdir(exist_ok=True)
    try:
        body = {"format": FORMAT, "header": header}
        hashed = chain("", body)
        line = canonical({**body, "hash": hashed}) + b"\n"
    except ValueError:  # NaN: no journal holds it
        return
    (folder / JOURNAL).write_bytes(line)
    (folder / HEAD).write_bytes(canonical({"step": 0, "hash": hashed, "closed": True}) + b"\n")


@fuzzed
@given(data=st.data())
def test_plan_files(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "plan.json"
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(spoilt(json.dumps(PLAN).encode()), label="content"))
    else:
        path.write_text(json.dumps(data.draw(altered(PLAN))))
    well(lambda: plan_of(None, path).to_dict())


@fuzzed
@given(tree=altered({"plan": {**PLAN, "mechanism": "laplace", "sampling": "full_batch", "steps": 1}, "values": [3]}))
def test_counts(tree: Any) -> None:
    well(lambda: PrivateCount.from_dict(tree).num_examples)
