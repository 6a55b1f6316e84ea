"""A stranger checks a run: what is as it was made passes, and whatever was changed is named."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dpzo.config.reading import parse_config
from dpzo.errors import DpzoError
from dpzo.privacy import Gaussian, PoissonSampling, PrivacyPlan, lattice
from dpzo.report import write_card
from dpzo.run import folders as runs
from dpzo.run import modules
from dpzo.run.journal import HEAD, JOURNAL, Journal, read
from dpzo.run.step_key import STEP_KEY
from dpzo.verify import Report, verify
from dpzo.verify.weights import NAMES

UNITS, STEPS = 24, 4
JOURNALLED = {"folder", "journal", "steps", "releases", "header", "epsilon", "second accountant", "Rényi bound", "base"}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("private") / "records.jsonl"
    rows = [{"prompt": f"note {i}", "completion": " a cat" if i % 3 else " a dog"} for i in range(UNITS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(model: Path, records: Path, folder: Path, seed: int = 0, **privacy: Any) -> Path:
    """A LoRA of four steps, its number of units counted privately."""
    tree = {
        "model": {"name": str(model), "trainable": "lora", "lora_rank": 2},
        "data": {"kind": "completion", "max_length": 24, "max_answer_tokens": 8},
        "privacy": {
            "epsilon": 2.0,
            "delta": 1e-3,
            "num_examples": "private",
            "count_share": 0.5,  # a count within a few units of the truth, so that every run has q < 1
            "relation": "add_or_remove_one",
            "expected_batch_size": 6,
            "steps": STEPS,
            "num_directions": 2,
            **privacy,
        },
        "training": {"microbatch_size": 8, "learning_rate": 1e-2, "seed": seed, "checkpoint_every": 2},
    }
    runs.train(parse_config(tree), runs.DataSource(file=records), folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, records: Path) -> Path:
    """A finished run. Copy it before you spoil it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpzo.run.checkpoint.discard", lambda folder: None)  # as an older version leaves it
        return train(tiny_llama, records, tmp_path_factory.mktemp("made") / "run")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, records: Path) -> Path:
    """The same with another seed."""
    return train(tiny_llama, records, tmp_path_factory.mktemp("other") / "run", seed=1)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def found(report: Report) -> dict[str, bool | None]:
    return {check.name: check.ok for check in report.checks}


# --- what was not touched


def test_a_run_as_it_was_made_is_verified_without_data(
    run: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a stranger has no data, and draws nothing")

    (run / "local.yaml").unlink()
    monkeypatch.setattr("dpzo.run.local.read_records", refuse)
    monkeypatch.setattr("os.urandom", refuse)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    report = verify(run)
    assert report.first_bad is None
    assert report.ok
    verdicts = found(report)
    assert verdicts.pop("signature") is None
    assert set(verdicts) == JOURNALLED | {"checkpoint", "weights", "card", "plan"}
    assert all(verdicts.values())
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    (counted,) = (check.detail for check in report.checks if check.name == "epsilon")
    whole = float(re.match(r"privacy_card\.json claims ([\d.]+)", counted)[1])  # type: ignore[index]
    (second,) = (check.detail for check in report.checks if check.name == "second accountant")
    training = float(re.search(r"claimed for training: ([\d.]+)", second)[1])  # type: ignore[index]
    assert 0.9 < training <= 1.0
    assert whole == pytest.approx(training + 1.0, abs=1e-4)  # training and count together


def test_the_base_model_may_lie_elsewhere(run: Path, tiny_llama: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_llama, tmp_path / "moved")
    assert verify(run, base=str(moved)).first_bad is None


def test_what_is_not_in_the_folder_is_not_held_against_it(run: Path) -> None:
    for name in ("privacy_card.json", "privacy_card.md", "plan.json", "config.yaml", "checkpoint.safetensors"):
        (run / name).unlink()
    report = verify(run)
    assert report.ok
    absent = {name for name, ok in found(report).items() if ok is None}
    assert absent == {"epsilon", "card", "plan", "checkpoint", "signature"}


@pytest.mark.slow
def test_a_burnt_step_is_counted_and_an_unfinished_run_holds(tiny_llama: Path, records: Path, tmp_path: Path) -> None:
    class Died(BaseException):
        """Stands for the end of the process."""

    real, folder = Journal.append, tmp_path / "run"

    def append(self: Journal, release: Any) -> None:
        if release.step == 2:
            raise Died
        real(self, release)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", append)
        with pytest.raises(Died):
            train(tiny_llama, records, folder)
    report = verify(folder)
    assert report.first_bad is None
    said = {check.name: check.detail for check in report.checks}
    assert "2 of 4 spent, 0 of them burnt" in said["steps"]
    assert "one more may be in flight" in said["steps"]
    assert "journal.key is its secret key: do not publish this folder" in said["steps"]
    assert "not finished" in said["weights"]
    key = (folder / STEP_KEY).read_bytes()
    (folder / STEP_KEY).unlink()
    runs.resume(folder)
    report = verify(folder)
    assert report.first_bad is None
    assert "4 of 4 spent, 1 of them burnt" in {check.name: check.detail for check in report.checks}["steps"]
    card = json.loads((folder / "privacy_card.json").read_text())
    assert any(row["statement"].startswith("Which steps are burnt") for row in card["assumptions"])
    (folder / STEP_KEY).write_bytes(key)
    bad = "steps: journal.key, the secret key of a step, is still here; dpzo resume destroys it"
    assert verify(folder).first_bad == bad
    runs.resume(folder)
    assert verify(folder).first_bad is None


# --- what was changed


def lines_of(run: Path) -> list[bytes]:
    return (run / JOURNAL).read_bytes().splitlines(keepends=True)


def rewrite(run: Path, change: Callable[[dict[str, Any], list[dict[str, Any]]], None], *, papers: bool = False) -> None:
    """Change header and entries and make every hash fit again, the head's too; `papers`: card and plan as well."""

    def canonical(fields: dict[str, Any]) -> bytes:
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    rows = [json.loads(line) for line in lines_of(run)]
    header, entries = rows[0]["header"], rows[1:]
    change(header, entries)
    hashed, written = "", []
    for body in [{"format": rows[0]["format"], "header": header}, *entries]:
        body.pop("hash", None)
        hashed = hashlib.sha256(hashed.encode() + b"\n" + canonical(body)).hexdigest()
        written.append(canonical({**body, "hash": hashed}) + b"\n")
    (run / JOURNAL).write_bytes(b"".join(written))
    (run / HEAD).write_bytes(canonical({"step": len(entries), "hash": hashed, "closed": True}) + b"\n")
    if papers:
        (run / "checkpoint.safetensors").unlink(missing_ok=True)
        transcript = read(run)
        facts = runs.plan_facts(PrivacyPlan.from_dict(header["plan"]), header)
        (run / "plan.json").write_text(json.dumps(facts, indent=2) + "\n")
        write_card(run, transcript)


def one_value(run: Path) -> None:
    lines = lines_of(run)
    row = json.loads(lines[2])
    row["values"][0] += 1
    lines[2] = json.dumps(row, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    (run / JOURNAL).write_bytes(b"".join(lines))


def step_dropped(run: Path) -> None:
    lines = lines_of(run)
    (run / JOURNAL).write_bytes(b"".join(lines[:2] + lines[3:]))


def steps_swapped(run: Path) -> None:
    lines = lines_of(run)
    lines[2], lines[3] = lines[3], lines[2]
    (run / JOURNAL).write_bytes(b"".join(lines))


def header_edited(run: Path) -> None:
    text = (run / JOURNAL).read_text()
    (run / JOURNAL).write_text(text.replace('"unit_column":null', '"unit_column":"who"', 1))


def tail_cut(run: Path) -> None:
    (run / JOURNAL).write_bytes(b"".join(lines_of(run)[:-1]))


def tail_torn(run: Path) -> None:
    (run / JOURNAL).write_bytes((run / JOURNAL).read_bytes()[:-9])


def head_edited(run: Path) -> None:
    head = json.loads((run / HEAD).read_text())
    (run / HEAD).write_text(json.dumps(head | {"hash": "0" * 64}, sort_keys=True, separators=(",", ":")) + "\n")


def head_dropped(run: Path) -> None:
    (run / HEAD).unlink()


def rubbish(run: Path) -> None:
    (run / JOURNAL).write_bytes(bytes(range(256)) * 9)


def last_step_dropped_everywhere(run: Path) -> None:
    rewrite(run, lambda header, entries: entries.pop(), papers=True)


def step_added(run: Path) -> None:
    rewrite(run, lambda header, entries: entries.append({"step": STEPS, "values": [1, 2]}), papers=True)


def value_rewritten(run: Path) -> None:
    rewrite(run, lambda header, entries: entries[1].update(values=[7_000, -7_000]))


def value_rewritten_with_papers(run: Path) -> None:
    rewrite(run, lambda header, entries: entries[1].update(values=[7_000, -7_000]), papers=True)


def silent(run: Path) -> None:
    def change(header: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            entry["values"] = [0, 0]

    rewrite(run, change, papers=True)


def more_noise_claimed(run: Path) -> None:
    def change(header: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        header["plan"]["scale"] *= 2

    rewrite(run, change, papers=True)


def steps_beyond_counting(run: Path) -> None:
    def change(header: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        header["plan"]["steps"] = 10**9

    rewrite(run, change)


def less_noise_throughout(run: Path) -> None:
    def change(header: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        header["plan"]["scale"] /= 2
        grid = lattice(Gaussian(header["plan"]["scale"]), header["plan"]["clip_norm"], 2)
        header |= {"lattice_unit": grid.unit, "lattice_bits": grid.bits, "lattice_bound": grid.bound}

    rewrite(run, change)


def count_left_out(run: Path) -> None:
    def change(header: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        header["count"] = None

    rewrite(run, change, papers=True)


def no_plan(run: Path) -> None:
    def change(header: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        header["plan"] = {"num_directions": 2, "steps": STEPS}

    rewrite(run, change)


def nonsense(name: str, value: Any) -> Callable[[Path], None]:
    def change(header: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        header[name] = value

    return lambda run: rewrite(run, change)


def other_learning_rate(run: Path) -> None:
    def change(header: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        header["update"]["learning_rate"] = 0.5

    rewrite(run, change, papers=True)


def one_weight(run: Path) -> None:
    path = run / "model" / "adapter_model.safetensors"
    weights = safetensors.torch.load_file(path)
    name = sorted(weights)[1]
    bits = weights[name].view(-1)[5:6].view(torch.int32)
    bits ^= 1
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})


def one_weight_of_the_checkpoint(run: Path) -> None:
    path = run / "checkpoint.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    next(tensor for name, tensor in sorted(tensors.items()) if name.startswith("parameter/")).view(-1)[0] += 1
    safetensors.torch.save_file(tensors, path, metadata=metadata)


def weights_unreadable(run: Path) -> None:
    (run / "model" / "adapter_model.safetensors").write_bytes(b"rubbish")


def tokenizer_swapped(run: Path) -> None:
    path = run / "model" / "tokenizer.json"
    path.write_text(path.read_text().replace('"<s>"', '"<t>"'))


def pickle_added(run: Path) -> None:
    (run / "model" / "pytorch_model.bin").write_bytes(b"")


def link_added(run: Path) -> None:
    path = run / "model" / "adapter_config.json"
    copy = path.rename(run / "elsewhere.json")
    path.symlink_to(copy)


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        text = (run / name).read_text()
        assert re.search(old, text)
        (run / name).write_text(re.sub(old, new, text, count=1))

    return change


def noise_of_a_double(run: Path) -> None:
    """A run as its trainer would publish it: honest about its noise, so that only the numbers look like a claim."""

    def change(header: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        header["secret_randomness"] = False

    rewrite(run, change, papers=True)


def diagnosed(run: Path) -> None:
    rewrite(run, lambda header, entries: header.update(nonprivate_uses=["losses were shown"]), papers=True)


def pipe(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).unlink()
        os.mkfifo(run / name)

    return change


def device(run: Path) -> None:
    (run / "privacy_card.json").unlink()
    (run / "privacy_card.json").symlink_to("/dev/zero")


def name_that_moves_the_cursor(run: Path) -> None:
    (run / "model" / "a\nb\x1b[31m\u202e.bin").write_bytes(b"")


TAMPERED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "one value": (one_value, "journal", "journal.jsonl: line 3 (step 1)"),
    "one step dropped": (step_dropped, "journal", "journal.jsonl: line 3 (step 1)"),
    "two steps swapped": (steps_swapped, "journal", "journal.jsonl: line 3 (step 1)"),
    "header edited": (header_edited, "journal", "line 1 was changed after it was written"),
    "tail cut": (tail_cut, "journal", "cut short after step 3"),
    "tail torn": (tail_torn, "journal", "cut short after step 3"),
    "head edited": (head_edited, "journal", "does not belong to the journal.head"),
    "head dropped": (head_dropped, "journal", "journal.head: missing or damaged"),
    "rubbish": (rubbish, "journal", "line 1 is not JSON"),
    "last step dropped, hashes made anew": (last_step_dropped_everywhere, "weights", "the journal stops before"),
    "step added, hashes made anew": (step_added, "steps", "line 6 of the journal (step 4) is beyond"),
    "value changed, hashes made anew": (value_rewritten, "card", "journal_hash"),
    "value changed, hashes and card made anew": (value_rewritten_with_papers, "weights", "adapter_model.safetensors"),
    "noise taken away": (silent, "releases", "too little noise"),
    "more noise in the plan than there is": (more_noise_claimed, "releases", "does not match its plan"),
    "less noise in the plan than the config pays for": (less_noise_throughout, "header", "plan.scale"),
    "a plan of more steps than can be counted": (
        steps_beyond_counting,
        "header",
        "plan.steps: Input should be less",
    ),
    "a count left out of ε": (count_left_out, "header", "count does not match its config"),
    "a header without a plan": (no_plan, "header", "plan.num_examples: Field required"),
    "a config of nonsense": (nonsense("config", [1]), "header", "config: Input should be an object"),
    "a base of nonsense": (nonsense("base", None), "header", "base: Input should be an object"),
    "another learning rate in the header": (other_learning_rate, "weights", "its update is not the one found now"),
    "one bit of one weight": (one_weight, "weights", "adapter_model.safetensors: tensor"),
    "one weight of the checkpoint": (one_weight_of_the_checkpoint, "checkpoint", "element 0 of"),
    "weights unreadable": (weights_unreadable, "weights", "cannot be read as safetensors"),
    "another tokenizer": (tokenizer_swapped, "weights", "model/tokenizer.json differs from what a replay writes"),
    "a pickle added": (pickle_added, "weights", "model/pytorch_model.bin is unexpected"),
    "a link": (link_added, "folder", "model/adapter_config.json is a symbolic link"),
    "the card's page": (replaced("privacy_card.md", "single record", "whole company"), "card", "privacy_card.md, line"),
    "the card's ε": (replaced("privacy_card.json", r'"epsilon": \d', '"epsilon": 0'), "epsilon", "the events give"),
    "the card's unit": (replaced("privacy_card.json", '"unit": "s', '"unit": "S'), "card", "line"),
    "the plan's file": (replaced("plan.json", '"steps": 4', '"steps": 3'), "plan", "plan.json, line"),
    "the config's file": (replaced("config.yaml", "steps: 4", "steps: 3"), "header", "config.yaml, line"),
    "noise that was no secret": (
        noise_of_a_double,
        "epsilon",
        "This assumption fails: noise and batches come from operating",
    ),
    "a diagnostic that showed losses": (diagnosed, "epsilon", "This assumption fails: no non-private diagnostic"),
    "a pipe for a card": (pipe("privacy_card.json"), "folder", "privacy_card.json is a pipe, a device or a socket"),
    "a pipe for a head": (pipe(HEAD), "folder", "journal.head is a pipe"),
    "a pipe for a journal": (pipe(JOURNAL), "folder", "journal.jsonl is a pipe"),
    "a pipe for a checkpoint": (pipe("checkpoint.safetensors"), "folder", "checkpoint.safetensors is a pipe"),
    "a pipe among the weights": (pipe("model/tokenizer.json"), "folder", "model/tokenizer.json is a pipe"),
    "a device for a card": (device, "folder", "privacy_card.json is a symbolic link"),
    "a name that moves the cursor": (name_that_moves_the_cursor, "weights", r"model/a\nb\x1b[31m\u202e.bin is unexp"),
    "the count's file": (replaced("count.json", r'"values": \[', '"values": [1'), "header", "count.json"),
}


@pytest.mark.parametrize("change", TAMPERED)
def test_a_changed_run_is_caught_and_the_place_named(run: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, name, fragment = TAMPERED[change]
    spoil(run)
    if name not in NAMES:  # what comes first is told first: no need to rebuild weights for it
        monkeypatch.setattr("dpzo.verify.verifying.check_weights", lambda run, transcript, base: iter(()))
    report = verify(run)
    assert not report.ok
    assert report.first_bad is not None
    assert report.first_bad.startswith(f"{name}: "), report.first_bad
    assert fragment in report.first_bad
    assert report.first_bad.isprintable()


@pytest.mark.slow
def test_another_runs_adapter_is_caught(run: Path, other: Path) -> None:
    shutil.copy(other / "model" / "adapter_model.safetensors", run / "model")
    bad = verify(run).first_bad
    assert bad is not None
    assert bad.startswith("weights: model/adapter_model.safetensors: tensor ")
    assert "element 0 of" in bad
    assert "the journal gives" in bad


def test_another_base_model_is_caught(run: Path, tiny_llama: Path, tiny_bert: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(tiny_llama, tmp_path / "changed"))
    weights = safetensors.torch.load_file(changed / "model.safetensors")
    weights[sorted(weights)[0]].view(-1)[0] += 1.0
    safetensors.torch.save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    report = verify(run, base=str(changed))
    assert report.first_bad is not None
    assert report.first_bad.startswith(f"base: {changed} is not the model of the run: fingerprint ")
    assert found(report)["weights"] is None
    for wrong in (tiny_bert, tmp_path / "nowhere"):
        bad = verify(run, base=str(wrong)).first_bad
        assert bad is not None
        assert bad.startswith(f"base: --base {wrong}: does not load as this run's base model: ")
        assert "--model" not in bad


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_rubbish_in_a_base_model_is_told_in_a_line(run: Path, tiny_llama: Path, tmp_path: Path, name: str) -> None:
    spoilt = Path(shutil.copytree(tiny_llama, tmp_path / "spoilt"))
    assert (spoilt / name).exists()
    (spoilt / name).write_bytes(bytes(range(255, -1, -1)) * 9)
    bad = verify(run, base=str(spoilt)).first_bad
    assert bad is not None
    assert bad.startswith(f"base: --base {spoilt}: does not load as this run's base model: cannot load the ")
    assert bad.isprintable()


# --- what is no such run


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DpzoError, match=r"no readable journal\.jsonl here; give the folder that dpzo train wrote"):
            verify(folder)


def test_a_baseline_is_not_verified_and_says_why(tmp_path: Path) -> None:
    card = {"method": "dp-sgd", "guarantee": False, "epsilon": None}
    (tmp_path / "baseline_card.json").write_text(json.dumps(card))
    report = verify(tmp_path)
    assert not report.ok
    assert report.first_bad == (
        "journal: the baseline dp-sgd writes no journal, so its noise, its steps and its weights cannot be checked"
    )
    (tmp_path / "baseline_card.json").write_text(json.dumps(card | {"guarantee": True}))
    assert found(verify(tmp_path))["card"] is False


def squares(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """One loss a row."""
    return ((model(batch["x"]) - batch["y"]) ** 2).sum(1)


def small() -> torch.nn.Module:
    module = torch.nn.Linear(3, 1)
    with torch.no_grad():
        module.weight.fill_(0.5)
        module.bias.fill_(0.25)
    return module


def test_a_modules_run_is_verified_with_the_module(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(3)
    examples = {name: torch.randn(40, width, generator=draw) for name, width in (("x", 3), ("y", 1))}
    plan = PrivacyPlan(40, PoissonSampling(0.25), Gaussian(2.0), 1.0, 5, 2, 1e-3)
    folder = tmp_path / "run"
    modules.fit(small(), squares, examples, plan=plan, settings=modules.Settings(0.1), output=folder)
    report = verify(folder)
    assert report.ok
    assert found(report)["weights"] is None
    report = verify(folder, module=small())
    assert report.ok
    assert found(report)["weights"] is True
    changed = small()
    with torch.no_grad():
        next(iter(changed.parameters())).add_(1)
    assert found(verify(folder, module=changed))["base"] is False
    weights = safetensors.torch.load_file(folder / modules.WEIGHTS)
    weights["bias"] += 1
    safetensors.torch.save_file(weights, folder / modules.WEIGHTS)
    bad = verify(folder, module=small()).first_bad
    assert bad is not None
    assert bad.startswith("weights: trained.safetensors: tensor bias, element 0 of 1 is")


def test_the_report_as_data(made: Path) -> None:
    report = verify(made)
    fields = json.loads(json.dumps(report.to_dict()))
    assert fields["ok"] is True
    assert fields["first_bad"] is None
    assert all(set(check) == {"name", "ok", "detail"} for check in fields["checks"])
    broken = replace(report, checks=(replace(report.checks[0], ok=None), *report.checks[1:]))
    assert not broken.ok  # a folder whose journal was not checked is never verified
