"""A run's folder in the hands of an attacker: records hidden in it, or a verifier that hangs, are found by name."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from dpzo.run import folders as runs
from dpzo.run import journal
from dpzo.run.journal import HEAD, JOURNAL
from dpzo.run.journal_line import canonical, chain
from dpzo.verify import verify
from dpzo.verify.weights import missing_tensors

HERE = Path(__file__).resolve().parents[1] / "fixtures"
SECRET = "alice, 1970-01-01, diagnosis F32.1"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks on files leave ε alone; its accountants have their own tests. The runs name models beside themselves."""
    monkeypatch.setattr("dpzo.verify.papers.second_bracket", lambda plan: "not asked here")
    monkeypatch.chdir(HERE)


def copied(name: str, scratch: Path) -> Path:
    return Path(shutil.copytree(HERE / name, scratch / name))


def forge(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header and make every hash after it anew: a journal that hangs together."""
    lines = [json.loads(line) for line in (run / JOURNAL).read_bytes().splitlines()]
    change(lines[0]["header"])
    chained, previous = [], ""
    for fields in lines:
        body = {name: value for name, value in fields.items() if name != "hash"}
        previous = chain(previous, body)
        chained.append(canonical({**body, "hash": previous}) + b"\n")
    (run / JOURNAL).write_bytes(b"".join(chained))
    head = {"closed": True, "hash": previous, "step": len(lines) - 1}
    (run / HEAD).write_bytes(canonical(head) + b"\n")
    for card in ("privacy_card.json", "privacy_card.md"):
        (run / card).unlink()


def header(*path: str, value: Any) -> Callable[[Path], None]:
    """An attack: the field at `path` of the header is `value`."""

    def change(fields: dict[str, Any]) -> None:
        for name in path[:-1]:
            fields = fields[name]
        fields[path[-1]] = value

    return lambda run: forge(run, change)


def file(name: str, content: str | bytes = SECRET) -> Callable[[Path], None]:
    def attack(run: Path) -> None:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return attack


def edited(name: str, old: str, new: str) -> Callable[[Path], None]:
    def attack(run: Path) -> None:
        text = (run / name).read_text(encoding="utf-8")
        assert old in text
        (run / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return attack


def sparse(name: str) -> Callable[[Path], None]:
    """Terabytes that take no room on a disk."""

    def attack(run: Path) -> None:
        with (run / name).open("r+b") as opened:
            opened.truncate(1 << 42)

    return attack


def linked(run: Path) -> None:
    (run / "plan.json").rename(run.parent / "elsewhere.json")
    (run / "plan.json").symlink_to(run.parent / "elsewhere.json")


def dangling(run: Path) -> None:
    (run / SECRET.replace("/", "-")).symlink_to("nowhere")


def listening(run: Path) -> None:
    here = os.getcwd()
    os.chdir(run)  # such a name is at most 108 bytes long
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("s")
    os.chdir(here)


def torn(run: Path) -> None:
    with (run / JOURNAL).open("ab") as opened:
        opened.write(SECRET.encode())
    lines = (run / JOURNAL).read_bytes().splitlines(keepends=True)
    (run / JOURNAL).write_bytes(b"".join([*lines[:3], lines[-1]]))
    head = {"closed": False, "hash": json.loads(lines[2])["hash"], "step": 2}
    (run / HEAD).write_bytes(canonical(head) + b"\n")
    (run / "trained.safetensors").unlink()
    for card in ("privacy_card.json", "privacy_card.md"):
        (run / card).unlink()


LONG_LINE = b'{"step":0,"values":[' + b"1," * (1 << 20) + b"1]}\n"
PLAIN_HEAD = json.loads((HERE / "module" / HEAD).read_bytes())

FOLDER: dict[str, tuple[Callable[[Path], None], str]] = {
    "an unknown file": (file("notes.txt"), "folder"),
    "a file with a name like ours": (file("plan.json "), "folder"),
    "a look-alike": (file("p\u0131an.json"), "folder"),
    "a hidden file": (file(".records"), "folder"),
    "a folder": (file("data/records.csv"), "folder"),
    "an empty folder": (lambda run: (run / SECRET.replace("/", "-")).mkdir(), "folder"),
    "a pickle": (file("trained.bin"), "folder"),
    "a name that turns text round": (file("a\u202etxt.sh"), "folder"),
    "a scratch file of a finished run": (file("plan.json.new"), "folder"),
    "a step's key in a finished run": (file("journal.key"), "steps"),
    "a link": (linked, "folder"),
    "a link to nowhere": (dangling, "folder"),
    "a pipe": (lambda run: os.mkfifo(run / "config.yaml"), "folder"),
    "a socket": (listening, "folder"),
    "a card without end": (sparse("privacy_card.json"), "folder"),
    "a plan of terabytes": (sparse("plan.json"), "folder"),
    "a further key of the head": (file(HEAD, json.dumps({**PLAIN_HEAD, "note": SECRET})), "journal"),
    "a head with spaces": (file(HEAD, json.dumps(PLAIN_HEAD, sort_keys=True)), "journal"),
    "two keys of the head": (
        lambda run: edited(HEAD, '{"closed"', '{"step":99,"closed"')(run),
        "journal",
    ),
    "a head of terabytes": (sparse(HEAD), "folder"),
    "text after the last line": (torn, "steps"),
    "a line without end": (
        lambda run: (run / JOURNAL).write_bytes((run / JOURNAL).read_bytes() + LONG_LINE),
        "journal",
    ),
    "a deep journal": (file(JOURNAL, b'{"a":' * 100_000 + b"\n"), "journal"),
    "a number beyond floats": (file(JOURNAL, b'{"header":{"lattice_unit":1e999}}\n'), "journal"),
    "a comment in the plan": (edited("plan.json", "{\n", f"{{\n  // {SECRET}\n"), "plan"),
    "digits in ε": (edited("plan.json", '"epsilon": ', '"epsilon": 0'), "plan"),
    "two keys of the plan": (edited("plan.json", "{\n", '{\n  "epsilon": 0.1,\n'), "plan"),
    "a comment on the card": (edited("privacy_card.md", "# Privacy card", "# Privacy card <!-- x -->"), "card"),
    "metadata of weights": (
        lambda run: save_file(
            load_file(run / "trained.safetensors"), run / "trained.safetensors", metadata={"note": SECRET}
        ),
        "weights",
    ),
}


@pytest.mark.parametrize("attack", FOLDER)
def test_what_is_hidden_in_the_folder_is_found(attack: str, tmp_path: Path) -> None:
    run = copied("module", tmp_path)
    act, check = FOLDER[attack]
    act(run)
    report = verify(run, module=_module())
    assert report.first_bad is not None, f"{attack} passed"
    assert {each.name for each in report.checks if each.ok is False} >= {check}
    assert all(each.detail.isprintable() for each in report.checks)


def _module() -> torch.nn.Module:
    module = torch.nn.utils.skip_init(torch.nn.Linear, 3, 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(0.125)
    return module


HEADER: dict[str, Callable[[Path], None]] = {
    "a further field": header("records", value=[SECRET]),
    "text for a version": header("environment", "torch", value=SECRET),
    "a person for a package": header("environment", "alice", value="1.0"),
    "a version with a message": header("environment", "torch", value="2.1.0+" + "a" * 40),
    "text in the evaluation": header("evaluation", "isolation", value=SECRET),
    "a further fact of the evaluation": header("evaluation", "note", value=SECRET),
    "rows without end": header("evaluation", "microbatch_size", value=10**10),
    "true for one": header("evaluation", "microbatch_size", value=True),
    "a tuning without end": header("tuning", value="x" * 30_000),
    "another spelling of the plan": header("plan", "steps", value=20.0),
    "a further number of the plan": header("plan", "note", value=1),
    "steps without end": header("plan", "steps", value=10**12),
    "directions without end": header("plan", "num_directions", value=10**12),
    "another update": header("update", "rule", value=SECRET),
    "other directions": header("directions", "scheme", value=SECRET),
    "other settings": header("settings", "note", value=SECRET),
    "a deep tree": header("update", "rule", value=[[[[[[[[[["x"]]]]]]]]]]),
    "a parameter called otherwise": header("parameters", value=[["weight\n" + SECRET, [1, 3], "float32"]]),
    "a fingerprint that is none": header("base", "fingerprint", value=SECRET),
    "a terminal's escape": header("unit_column", value="\x1b[2J" * 2000),
}


@pytest.mark.parametrize("attack", HEADER)
def test_a_header_that_no_run_writes_is_refused(attack: str, tmp_path: Path) -> None:
    run = copied("module", tmp_path)
    HEADER[attack](run)
    report = verify(run, module=_module())
    assert report.first_bad is not None, f"{attack} passed"
    assert SECRET not in report.first_bad  # which may be a record


def _rewritten(tensors: Callable[[dict[str, torch.Tensor]], object], **metadata: str) -> Callable[[Path], None]:
    def attack(run: Path) -> None:
        path = run / "model" / "model.safetensors"
        found = load_file(path)
        tensors(found)
        save_file(found, path, metadata={"format": "pt", **metadata})

    return attack


def _nothing(tensors: dict[str, torch.Tensor]) -> None:
    """Leave the tensors as they are."""


def _bits(pattern: float) -> Callable[[dict[str, torch.Tensor]], None]:
    """The first zero of the model, spelled as another float that compares equal, or as a NaN with a payload."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for tensor in tensors.values():
            zeros = (tensor.reshape(-1) == 0).nonzero()
            if len(zeros):
                tensor.reshape(-1)[int(zeros[0])] = pattern
                return
        raise AssertionError("no zero to change")

    return change


def _double(tensors: dict[str, torch.Tensor]) -> None:
    name = min(tensors)
    tensors[name] = tensors[name].double()


def _head(change: Callable[[str], str]) -> Callable[[Path], None]:
    """The JSON head of the weights' file spelled in another way; the tensors stay where they are."""

    def attack(run: Path) -> None:
        path = run / "model" / "model.safetensors"
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        text = change(raw[8 : 8 + length].decode().rstrip(" ")).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return attack


def _trailing(run: Path) -> None:
    with (run / "model" / "model.safetensors").open("ab") as opened:
        opened.write(SECRET.encode())


def _noted(run: Path) -> None:
    path = run / "checkpoint.safetensors"
    with safetensors.safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(path), path, metadata={**metadata, "note": SECRET})


NAN = float(np.frombuffer(np.uint32(0x7FC12345).tobytes(), np.float32)[0])
MODEL: dict[str, Callable[[Path], None]] = {
    "metadata of weights": _rewritten(_nothing, note=SECRET),
    "a tensor more": _rewritten(lambda tensors: tensors.update(note=torch.arange(3.0))),
    "another type": _rewritten(_double),
    "minus zero": _rewritten(_bits(-0.0)),
    "a NaN with a payload": _rewritten(_bits(NAN)),
    "spaces in the head": _head(lambda text: text.replace(":", ": ", 1)),
    "an escape in the head": _head(lambda text: text.replace("F32", "\\u004632", 1)),
    "bytes after the tensors": _trailing,
    "metadata of the checkpoint": _noted,
    "a pickle": file("model/pytorch_model.bin"),
    "an empty folder": lambda run: (run / "model" / "alice 1970").mkdir(),
    "another configuration": edited("model/config.json", "{\n", '{\n  "note": "alice",\n'),
    "two keys of a configuration": edited("model/config.json", "{\n", '{\n  "hidden_size": 1,\n'),
    "another tokenizer": edited("model/tokenizer_config.json", "{\n", '{\n  "auto_map": {},\n'),
    "a configuration without end": sparse("model/config.json"),
    "a comment in the config": edited("config.yaml", "model:\n", f"# {SECRET}\nmodel:\n"),
    "another spelling in the config": edited("config.yaml", "steps: 5", "steps: 5.0"),
    "two keys of the config": edited("config.yaml", "privacy:\n", "privacy:\n  delta: 0.5\n"),
    "a length without end": header("config", "data", "max_length", value=10**10),
    "a length that fits no memory": header("config", "data", "max_length", value=10**30),
    "a pipe for a basis": lambda run: (
        os.mkfifo(run.parent / "pipe"),
        header("config", "training", "basis", value=str(run.parent / "pipe"))(run),
    ),  # type: ignore[func-returns-value,dict-item]
    "a device for a basis": header("config", "training", "basis", value="/dev/zero"),
    "a folder for a basis": header("config", "training", "basis", value="/proc/self"),
    "a device for a base model": header("config", "model", "name", value="/dev/zero"),
    "a rank without end": header("config", "model", "lora_rank", value=10**9),
    "tokens without end": header("config", "model", "virtual_tokens", value=10**9),
    "a label without end": header("config", "data", "labels", value=["a", "b" * 10**6]),
    "labels as a text": header("config", "data", "labels", value="ab"),
    "a number for a text": header("config", "privacy", "delta", value="0.001"),
}


@pytest.mark.parametrize("attack", MODEL)
def test_what_is_hidden_beside_the_weights_is_found(attack: str, tmp_path: Path) -> None:
    run = copied("head", tmp_path)
    MODEL[attack](run)
    report = verify(run)
    assert report.first_bad is not None, f"{attack} passed"


def _piped_config(base: Path) -> None:
    (base / "config.json").unlink()
    os.mkfifo(base / "config.json")


def _nested(base: Path) -> None:
    (base / "additional_chat_templates").mkdir()
    os.mkfifo(base / "additional_chat_templates" / "tools.jinja")


def _behind_a_link(base: Path) -> None:
    (base.parent / "elsewhere").mkdir()
    os.mkfifo(base.parent / "elsewhere" / "pipe")
    (base / "deeper").mkdir()
    (base / "deeper" / "linked").symlink_to(base.parent / "elsewhere")


def _sharded(place: str) -> Callable[[Path], None]:
    """An index that spreads the weights over files, one of which is a pipe at `place`."""

    def attack(base: Path) -> None:
        (base / "model.safetensors").rename(base / "whole.safetensors")
        names = dict.fromkeys(load_file(base / "whole.safetensors"), "whole.safetensors")
        names[min(names)] = place
        (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
        (base / place).parent.mkdir(exist_ok=True)
        os.mkfifo(base / place)

    return attack


def _socket(base: Path) -> None:
    (base / "sub").mkdir()
    listening(base / "sub")


def _crowded(base: Path) -> None:
    (base / "many").mkdir()
    for number in range(10_001):
        (base / "many" / str(number)).touch()


BASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (_piped_config, "not a regular file"),
    "a pipe in a folder": (_nested, "not a regular file"),
    "a pipe behind a link": (_behind_a_link, "not a regular file"),
    "a shard beside the folder": (_sharded("../pipe.safetensors"), "not a regular file"),
    "a shard in a hidden folder": (_sharded(".weights/pipe.safetensors"), "not a regular file"),
    "a socket in a folder": (_socket, "not a regular file"),
    "a configuration without end": (sparse("config.json"), "at most"),
    "a folder without end": (_crowded, "holds more than 10000 files"),
}


@pytest.mark.parametrize("attack", BASES)
def test_a_base_model_that_hangs_is_not_opened(attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpzo.verify.weights.rebuild", lambda *given: pytest.fail("the base model was opened"))
    base = Path(shutil.copytree(HERE / "models" / "bert", tmp_path / "base"))
    change, said = BASES[attack]
    change(base)
    report = verify(HERE / "head", base=str(base))
    assert report.first_bad is not None
    assert report.first_bad.startswith("base: ")
    assert said in report.first_bad


def test_usual_further_files_of_a_base_model_pass(tmp_path: Path) -> None:
    """Folders, links to themselves, an index of weights that were not downloaded, a version control's files."""
    base = Path(shutil.copytree(HERE / "models" / "bert", tmp_path / "base"))
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text("{}")
    (base / "loop").symlink_to(".")
    (base / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-1.bin"}}')
    (base / "broken.index.json").write_text("[[")
    (base / ".git").mkdir()
    os.mkfifo(base / ".git" / "fsmonitor")
    assert verify(HERE / "head", base=str(base)).first_bad is None


def test_a_trained_tensor_that_no_file_holds_is_named(tmp_path: Path) -> None:
    """By its bits, under whatever name and in whatever folder; a tensor of equal values in another type is another."""
    trained = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1.5, -0.0])}
    (tmp_path / "encoder").mkdir()
    save_file({"model.a": trained["a"], "base": torch.ones(4)}, tmp_path / "one.safetensors")
    assert missing_tensors(tmp_path, trained) == "b"
    save_file({"x": trained["b"].double()}, tmp_path / "encoder" / "two.safetensors")
    assert missing_tensors(tmp_path, trained) == "b"
    save_file({"x": torch.nextafter(trained["b"], torch.tensor(9.0))}, tmp_path / "encoder" / "two.safetensors")
    assert missing_tensors(tmp_path, trained) == "b"
    save_file({"x": trained["b"]}, tmp_path / "encoder" / "two.safetensors")
    assert missing_tensors(tmp_path, trained) is None
    save_file({"model.a": torch.tensor([1.5, 0.0])}, tmp_path / "one.safetensors")
    assert missing_tensors(tmp_path, trained) == "a"
    assert missing_tensors(tmp_path / "nowhere", trained) == "a"


@pytest.mark.parametrize(("name", "lost"), [("head", "head.bias"), ("lora", "lora_A")])
def test_a_run_that_saves_less_than_it_trained_fails(
    name: str, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if a replay leaves the same tensor out, as a library that attaches a leftover adapter does."""
    run, save_model = copied(name, tmp_path), runs.save_model

    def forgetful(parts: Any, output: Path, **how: Any) -> None:
        save_model(parts, output, **how)
        for path in (output / "model").rglob("*.safetensors"):
            tensors = load_file(path)
            kept = {key: value for key, value in tensors.items() if lost not in key}
            if len(kept) < len(tensors):
                save_file(kept, path)
                shutil.copy(path, run / path.relative_to(output))

    monkeypatch.setattr("dpzo.run.folders.save_model", forgetful)
    report = verify(run)
    assert report.first_bad is not None
    assert report.first_bad.startswith("weights: model/ would not contain the trained tensor ")
    assert lost in report.first_bad


def test_hard_links_and_modes_change_no_verdict(tmp_path: Path) -> None:
    run = copied("module", tmp_path)
    os.link(run / "plan.json", tmp_path / "other name")
    (run / "plan.json").chmod(0o666)
    assert verify(run, module=_module()).first_bad is None


def test_an_edit_is_shown_where_it_is(tmp_path: Path) -> None:
    run = copied("head", tmp_path)
    path = run / "privacy_card.md"
    text = path.read_text(encoding="utf-8")
    claim = next(line for line in text.splitlines() if line.startswith("**Whatever"))
    path.write_text(text.replace(claim, claim.replace("the number of units is public", "the number of units is known")))
    report = verify(run)
    assert report.first_bad is not None
    assert "character " in report.first_bad
    assert "known" in report.first_bad
    assert "public" in report.first_bad


def test_what_is_not_checked_is_said(tmp_path: Path) -> None:
    run = copied("module", tmp_path)
    (run / "local.yaml").write_text("base: null\ndata: {}\n")
    report = verify(run)
    assert report.ok
    said = "\n".join(report.not_checked)
    for words in ("local.yaml", "licence", "versions", "N and the data"):
        assert words in said


TUNINGS = {
    "a comment": "a <!-- ",
    "a tag": "<script>alert(1)</script>",
    "a cell": "a | b",
    "a code span": "`a",
    "a link": "[a](http://b)",
    "a line": "a\n\n# No assumptions",
    "an escape": "\x1b[2Jgone",
    "text turned round": "a\u202eb",
}


@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_tuning_cannot_change_the_card(tuning: str) -> None:
    from dpzo.report import build_card, render_markdown

    card = build_card(journal.read(HERE / "head"))
    plain = render_markdown({**card, "tuning": "x"}).splitlines()
    shown = render_markdown({**card, "tuning": TUNINGS[tuning], "unit": TUNINGS[tuning]}).splitlines()
    assert len(shown) == len(plain)
    for line in shown:
        assert line.isprintable()
        assert "<" not in line
        assert line.count("|") - line.count("\\|") in (0, 3)
        assert (line.count("`") - line.count("\\`")) % 2 == 0
        assert "[a](" not in line
