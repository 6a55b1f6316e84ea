"""Whole runs on tiny models: what the folder holds, that others can load it, and that it can be rebuilt."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
import yaml
from peft import AutoPeftModelForCausalLM, PeftModel

from dpzo.config.reading import as_config, dump_config, load_config, parse_config, with_values
from dpzo.config.schema import RunConfig
from dpzo.errors import DpzoError
from dpzo.models import fingerprint_tensors
from dpzo.models.generation import chat_prompts
from dpzo.privacy import PrivacyPlan
from dpzo.report import build_card, render_markdown
from dpzo.run import folders as runs
from dpzo.run import trained_model
from dpzo.run.build import RunFacts, RunParts, start
from dpzo.run.checkpoint import CHECKPOINT
from dpzo.run.finished import finished_card
from dpzo.run.journal import Journal, read
from dpzo.run.local import found_base
from dpzo.run.output import claimed, set_aside
from dpzo.run.private_count import PrivateCount
from dpzo.run.step_key import STEP_KEY

NUM_RECORDS, STEPS = 24, 4


class Died(BaseException):
    """Stands for the end of the process."""


@dataclass(frozen=True)
class Made:
    """A finished run, how it was asked for, and the card that came back."""

    folder: Path
    config: RunConfig
    data: Path
    card: dict[str, Any]


def config_of(model: Path, trainable: str | None = None, **data: Any) -> RunConfig:
    return parse_config(
        {
            "model": {"name": str(model), "trainable": trainable, **({"lora_rank": 2} if trainable == "lora" else {})},
            "data": {"max_length": 24, **({"max_answer_tokens": 8} if "kind" in data else {}), **data},
            "privacy": {
                "noise_multiplier": 2.0,
                "delta": 1e-3,
                "num_examples": NUM_RECORDS,
                "expected_batch_size": 6,
                "steps": STEPS,
                "num_directions": 2,
            },
            "training": {"microbatch_size": 8, "learning_rate": 1e-2},
        }
    )


COMPLETION = {"kind": "completion"}
CLASSES = {"labels": ["calm", "loud"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records that serve as prompts, as texts, and by person: two records each."""
    path = tmp_path_factory.mktemp("private") / "records.jsonl"
    rows = [
        {
            "prompt": f"once upon a time {number}",
            "completion": " there was a cat" if number % 3 else " there was a dog",
            "text": f"{'LOUD! ' * (number % 2)}number {number}",
            "label": CLASSES["labels"][number % 2],
            "person": f"person {number // 2}",
        }
        for number in range(NUM_RECORDS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Callable[..., Made]:
    def make(config: RunConfig, **options: Any) -> Made:
        folder = tmp_path_factory.mktemp("runs") / "run"
        return Made(folder, config, data, runs.train(config, runs.DataSource(file=data), folder, **options))

    return make


@pytest.fixture(scope="module")
def lora(train: Callable[..., Made], shared_folder: Callable[[str], Path]) -> Made:
    return train(config_of(shared_folder("models/stories260K"), "lora", **COMPLETION))


@pytest.fixture(scope="module")
def full(train: Callable[..., Made], tiny_llama: Path, linear: ModuleType) -> Made:
    return train(config_of(tiny_llama, "full", **COMPLETION), nonprivate_randomness=linear.Noise)


@pytest.fixture(scope="module")
def head(train: Callable[..., Made], tiny_bert: Path) -> Made:
    """A head over a frozen encoder; the unit is the person."""
    config = config_of(tiny_bert, unit_column="person", **CLASSES)
    tree = config.model_dump()
    tree["privacy"] |= {"num_examples": NUM_RECORDS // 2, "expected_batch_size": 3}
    return train(parse_config(tree))


@pytest.fixture(params=["lora", "full", "head"])
def made(request: pytest.FixtureRequest) -> Made:
    run: Made = request.getfixturevalue(request.param)
    return run


def test_the_folder_holds_what_is_promised_and_is_the_owners(made: Made) -> None:
    assert {path.name for path in made.folder.iterdir()} == {
        "journal.jsonl",
        "journal.head",
        "config.yaml",
        "plan.json",
        "local.yaml",
        "privacy_card.json",
        "privacy_card.md",
        "model",
    }
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.folder.iterdir()}
    assert modes.pop("model") == 0o700
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    for path in made.folder.rglob("*"):
        assert path.suffix not in {".bin", ".pt", ".pkl", ".pickle", ".py"}
        if path.is_file() and path.name != "local.yaml":
            assert str(made.data).encode() not in path.read_bytes()
    local = yaml.safe_load((made.folder / "local.yaml").read_text())
    assert local["data"] == {"file": str(made.data)}
    assert Path(local["base"]).is_absolute()


def test_the_saved_config_is_what_was_chosen_and_the_header_states_every_value(made: Made) -> None:
    header = read(made.folder).header
    assert load_config(made.folder / "config.yaml", {}) == made.config == runs.chosen_config(header)
    used = parse_config(header["config"])
    for group in (used.privacy, used.training):
        unset = {name for name, value in group.model_dump().items() if value is None}
        assert unset <= {"epsilon", "noise_multiplier", "basis"}
    assert {"privacy.clip_norm", "training.smoothing", "training.average"} <= set(header["derived"])
    assert "training.learning_rate" not in header["derived"]
    plan = json.loads((made.folder / "plan.json").read_text())
    assert {name: plan[name] for name in header["plan"]} == header["plan"]
    assert plan["noise_multiplier"] == pytest.approx(2.0)
    assert plan["steps"] == STEPS == read(made.folder).num_steps


LEFT_OPEN = {
    "epsilon": ({"privacy.epsilon": 8.0}, {"learning_rate"}),
    "steps": ({"privacy.steps": 50}, {"learning_rate"}),
    "directions": ({"privacy.num_directions": 2}, {"learning_rate", "clip_norm"}),
    "mechanism": ({"privacy.mechanism": "laplace"}, {"learning_rate", "clip_norm"}),
    "units": ({"privacy.num_examples": 400}, {"learning_rate", "expected_batch_size"}),
    "part": (
        {"model.trainable": "full"},
        {"learning_rate", "clip_norm", "smoothing", "average", "microbatch_size", "expected_batch_size"},
    ),
}


@pytest.fixture(scope="module")
def at_one(tiny_bert: Path) -> RunParts:
    """A run at ε = 1 with everything left open that can be."""
    return assembled(tiny_bert, {})


def assembled(model: Path, changes: dict[str, Any], path: Path | None = None) -> RunParts:
    given = {"model.name": str(model), "data.labels": ["calm", "loud"], "data.max_length": 16}
    given |= {"privacy.epsilon": 1.0, "privacy.delta": 1e-3, "privacy.num_examples": 800}
    config = load_config(path, changes if path is not None else {**given, **changes})
    assert isinstance(config.privacy.num_examples, int)
    return start(config, RunFacts(config.privacy.num_examples, "declared"))


@pytest.mark.parametrize("change", LEFT_OPEN)
def test_a_saved_config_used_again_derives_anew(at_one: RunParts, tiny_bert: Path, tmp_path: Path, change: str) -> None:
    """Whatever of ε, T, K, noise, N and part is changed, the values that were derived for the first run do not stay."""
    options, moves = LEFT_OPEN[change]
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_config(runs.chosen_config(at_one.job.header)))
    again, fresh = assembled(tiny_bert, options, saved), assembled(tiny_bert, options)
    assert again.subject.config == fresh.subject.config
    assert again.job.header["derived"] == fresh.job.header["derived"]
    before, now = at_one.subject.config, again.subject.config
    for name in moves:
        group = "privacy" if hasattr(now.privacy, name) else "training"
        assert getattr(getattr(now, group), name) != getattr(getattr(before, group), name), name


def test_what_was_derived_is_said_in_a_line(at_one: RunParts) -> None:
    said = runs.derived_note(at_one.job.header)
    assert said.startswith("derived from the plan and the model: model.trainable head, ")
    assert "privacy.clip_norm 2, " in said
    assert "\n" not in said


def test_the_card_is_a_function_of_the_journal(made: Made) -> None:
    assert json.loads((made.folder / "privacy_card.json").read_text()) == made.card
    assert build_card(read(made.folder)) == made.card
    assert (made.folder / "privacy_card.md").read_text() == render_markdown(made.card)


def test_a_replay_from_base_model_and_journal_gives_the_same_model(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a replay reads no data and draws nothing")

    monkeypatch.setattr("dpzo.run.local.read_records", refuse)
    monkeypatch.setattr("os.urandom", refuse)
    alone = tmp_path / "journal"
    alone.mkdir()
    for name in ("journal.jsonl", "journal.head"):
        shutil.copy(made.folder / name, alone / name)
    rebuilt = runs.replay(alone, tmp_path / "rebuilt")
    assert rebuilt.equals_run is None
    trained = json.loads((made.folder / "model" / "trained.json").read_text())
    assert trained == {"fingerprint": rebuilt.fingerprint}
    for path in (made.folder / "model").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "rebuilt" / "model" / path.name).read_bytes()


def test_a_replay_beside_the_model_compares_itself(full: Made, tmp_path: Path) -> None:
    assert runs.replay(full.folder, tmp_path / "a").equals_run is True
    changed = tmp_path / "changed"
    shutil.copytree(full.folder, changed)
    (changed / "model" / "trained.json").write_text('{"fingerprint": "0"}')
    assert runs.replay(changed, tmp_path / "b").equals_run is False


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # between peft and transformers
def test_an_adapter_loads_with_plain_peft(lora: Made) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(lora.config.model.name)
    model = PeftModel.from_pretrained(base, lora.folder / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(lora.folder / "model")
    tokens = tokenizer("once upon a time", return_tensors="pt")
    with torch.no_grad():
        adapted = model(input_ids=tokens["input_ids"]).logits
        with model.disable_adapter():
            plain = model(input_ids=tokens["input_ids"]).logits
    assert not torch.equal(adapted, plain)


def test_a_full_model_loads_with_plain_transformers(full: Made) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(full.folder / "model")
    untrained = transformers.AutoModelForCausalLM.from_pretrained(full.config.model.name)
    header = read(full.folder).header
    state = dict(model.named_parameters())
    learned = {name: state[name].detach() for name, _, _ in header["parameters"]}
    assert (
        fingerprint_tensors(learned) == json.loads((full.folder / "model" / "trained.json").read_text())["fingerprint"]
    )
    before = dict(untrained.named_parameters())
    assert not any(torch.equal(before[name], tensor) for name, tensor in learned.items())


def test_an_encoder_with_its_head_loads_by_the_lines_of_its_readme(head: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (head.folder / "model" / "README.md").read_text()
    lines = readme.split("```python\n")[1].split("```")[0]
    scope: dict[str, Any] = {}
    monkeypatch.chdir(head.folder / "model")
    exec(lines, scope)
    rows = [json.loads(line) for line in head.data.read_text().splitlines()]
    logits = scope["logits"]([row["text"] for row in rows])
    right = [scope["labels"][i] == row["label"] for i, row in zip(logits.argmax(-1).tolist(), rows, strict=True)]
    upper, lower = logits.topk(2).values.unbind(-1)
    ties = int((upper - lower < 1e-4).sum())  # may go either way in a batch of another shape
    found = trained_model.evaluate(head.folder, runs.DataSource(file=head.data), data_is="public")["value"]
    assert ties < len(rows) / 4
    assert abs(float(found) - np.mean(right)) * len(rows) <= ties + 1e-6


def test_evaluation_is_the_mean_loss_of_a_completion_task(full: Made, lora: Made) -> None:
    for run in (full, lora):
        result = trained_model.evaluate(run.folder, runs.DataSource(file=run.data), data_is="public")
        assert result["metric"] == "loss"
        assert 0 < float(result["value"]) < 20
        assert result == trained_model.evaluate(run.folder, runs.DataSource(file=run.data), data_is="public")


def test_a_finished_run_taken_up_again_stays_as_it_is(head: Made) -> None:
    before = {path: path.read_bytes() for path in head.folder.rglob("*") if path.is_file()}
    assert runs.resume(head.folder) == head.card
    assert {path: path.read_bytes() for path in head.folder.rglob("*") if path.is_file()} == before


# --- what the card claims


def test_a_private_run_claims_the_plans_epsilon(lora: Made) -> None:
    plan = json.loads((lora.folder / "plan.json").read_text())
    assert lora.card["guarantee"] is True
    assert (lora.card["epsilon"], lora.card["delta"]) == (plan["epsilon"], 1e-3)
    assert lora.card["unit"] == "single record"
    assert "is differentially private at ε = " in lora.card["claim"]


def test_a_run_with_a_noise_double_claims_nothing(full: Made) -> None:
    page = (full.folder / "privacy_card.md").read_text()
    assert full.card["guarantee"] is False
    assert full.card["epsilon"] is None
    assert full.card["claim"].startswith("No guarantee")
    assert "**No guarantee" in page
    assert "differentially private at" not in page
    assert "operating-system entropy" not in full.card["mechanism"]["sampler"]
    assert read(full.folder).header["secret_randomness"] is False


def test_the_unit_is_named_and_counted_by_person(head: Made) -> None:
    assert head.card["unit"] == "set of all records that share a value of column 'person'"


def test_the_card_states_the_clip_as_a_loss_difference(head: Made, full: Made) -> None:
    for made in (head, full):
        filled = read(made.folder).header["config"]["training"]["smoothing"]
        mechanism = made.card["mechanism"]
        assert mechanism["loss_difference_clip"] == pytest.approx(2 * filled * mechanism["clip_norm"])
        assert f"in raw loss differences at smoothing φ = {filled:g} |" in render_markdown(made.card)
    assert head.card["sampling"]["num_examples"] == NUM_RECORDS // 2
    assert head.card["guarantee"] is True


def test_a_number_counted_from_the_file_claims_nothing(train: Callable[..., Made], tiny_bert: Path) -> None:
    tree = config_of(tiny_bert, unit_column="person", **CLASSES).model_dump()
    tree["privacy"]["num_examples"] = "from-file"
    run = train(parse_config(tree))
    assert run.card["guarantee"] is False
    assert run.card["epsilon"] is None
    assert run.card["sampling"]["num_examples"] == NUM_RECORDS // 2
    assert run.card["sampling"]["num_examples_source"] == "from-file"
    failed = [a["statement"] for a in run.card["assumptions"] if a["verdict"] == "fail"]
    assert [text[:36] for text in failed] == ["The number of units was declared, or"]


# --- stops and refusals


def test_a_death_and_a_resume_by_folder_alone(
    train: Callable[..., Made], full: Made, tmp_path: Path, linear: ModuleType
) -> None:
    real = Journal.append

    def append(self: Journal, release: Any) -> None:
        if release.step == 2:
            raise Died
        real(self, release)

    source, folder = runs.DataSource(file=full.data), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", append)
        with pytest.raises(Died):
            runs.train(full.config, source, folder, nonprivate_randomness=linear.Noise)
    with pytest.raises(DpzoError, match="the run is not finished; dpzo resume it first"):
        trained_model.evaluate(folder, source)
    with pytest.raises(DpzoError, match="holds another run; dpzo resume it, set it aside"):
        runs.train(full.config, source, folder)
    card = runs.resume(folder, nonprivate_randomness=linear.Noise)
    assert card["steps"] == {**full.card["steps"], "spent": STEPS, "burnt": 0}
    assert list(read(folder).entries()) == list(read(full.folder).entries())
    assert not (folder / STEP_KEY).exists()
    assert not (folder / CHECKPOINT).exists()
    assert runs.replay(folder, tmp_path / "rebuilt").equals_run is True


def test_another_base_model_is_refused_and_the_same_one_elsewhere_is_not(full: Made, tmp_path: Path) -> None:
    moved, other = tmp_path / "moved", tmp_path / "other"
    for folder in (moved, other):
        shutil.copytree(full.config.model.name, folder)
    weights = safetensors.torch.load_file(other / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] += 1.0
    safetensors.torch.save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DpzoError, match="written for another run; its base is not the one found now"):
        runs.replay(full.folder, tmp_path / "refused", base=str(other))
    assert not (tmp_path / "refused").exists()
    assert runs.replay(full.folder, tmp_path / "rebuilt", base=str(moved)).equals_run is True


def test_an_output_that_is_not_new_is_refused_before_any_work(tiny_bert: Path, data: Path, tmp_path: Path) -> None:
    config, source = config_of(tiny_bert, **CLASSES), runs.DataSource(file=data)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    with pytest.raises(DpzoError, match=r"--output .*: holds other files; choose a new folder"):
        runs.train(config, source, tmp_path / "full")
    with pytest.raises(DpzoError, match=r"--output .*: is a file"):
        runs.train(config, source, tmp_path / "file")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("group", "change", "message"),
    [
        ("privacy", {"num_examples": None}, "--num-examples is missing: N enters the guarantee"),
        ("data", {"labels": None}, "--labels is missing: declare the label set"),
        ("data", {"task": "no such"}, "--task no such: "),
        ("data", {"text_column": "absent"}, "has no column 'absent'"),
        ("data", {"labels": ["calm", "other"]}, "row 2: column 'label' holds a label that is not declared"),
        ("privacy", {"expected_batch_size": 1000}, "`expected_batch_size` must lie between 0 and `num_examples`"),
        ("privacy", {"noise_multiplier": None}, "give exactly one of `epsilon` and `noise_multiplier`"),
        ("model", {"name": "/no/such/model"}, "/no/such/model"),
    ],
)
def test_a_mistake_is_named_and_leaves_no_folder(
    tiny_bert: Path, data: Path, tmp_path: Path, group: str, change: dict[str, Any], message: str
) -> None:
    tree = config_of(tiny_bert, **CLASSES).model_dump()
    tree[group] |= change
    with pytest.raises(DpzoError) as caught:
        runs.train(parse_config(tree), runs.DataSource(file=data), tmp_path / "run")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_that_lost_its_local_file_says_so(full: Made, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(full.folder, copy)
    for content in (None, "[]", "file: 7", "{", "other: there"):
        (copy / "local.yaml").unlink(missing_ok=True)
        if content is not None:
            (copy / "local.yaml").write_text(content)
        with pytest.raises(DpzoError, match=r"local\.yaml: missing or damaged"):
            runs.resume(copy)


def test_no_such_run_is_named(tmp_path: Path) -> None:
    for act in (
        runs.resume,
        lambda folder: runs.replay(folder, tmp_path / "out"),
        lambda folder: trained_model.evaluate(folder, runs.DataSource(file=tmp_path / "x.csv")),
    ):
        with pytest.raises(DpzoError, match="give the folder that dpzo train wrote"):
            act(tmp_path / "absent")


PRIVATE_COUNT = {"num_examples": "private", "relation": "add_or_remove_one", "noise_multiplier": None, "epsilon": 4.0}


def test_a_private_number_of_units_is_paid_for(train: Callable[..., Made], tiny_bert: Path, tmp_path: Path) -> None:
    tree = config_of(tiny_bert, **CLASSES).model_dump()
    tree["privacy"] |= PRIVATE_COUNT | {"count_share": 0.25}
    run = train(parse_config(tree))
    header = read(run.folder).header
    released = json.loads((run.folder / "count.json").read_text())
    assert header["count"] == released
    assert header["num_examples_source"] == "private-count"
    assert (
        header["plan"]["num_examples"]
        == PrivateCount.from_dict(released).num_examples
        == run.card["sampling"]["num_examples"]
    )
    assert run.card["sampling"]["count_epsilon"] == pytest.approx(1.0)
    assert PrivacyPlan.from_dict(header["plan"]).epsilon == pytest.approx(3.0, rel=2e-3)
    assert run.card["epsilon"] == pytest.approx(4.0, rel=2e-3)
    assert run.card["epsilon"] <= 4.0 + 1e-12
    assert run.card["guarantee"]
    assert "at ε = 1.0000, included above" in render_markdown(run.card)
    assert json.loads((run.folder / "plan.json").read_text())["epsilon_with_count"] == run.card["epsilon"]
    assert runs.replay(run.folder, tmp_path / "again").equals_run


def test_a_private_number_is_written_down_before_anything_can_fail(data: Path, tiny_bert: Path, tmp_path: Path) -> None:
    tree = config_of(tiny_bert, **CLASSES, max_length=100_000).model_dump()
    tree["privacy"] |= PRIVATE_COUNT
    with pytest.raises(DpzoError, match="max-length"):
        runs.train(parse_config(tree), runs.DataSource(file=data), tmp_path / "run")
    assert (tmp_path / "run" / "count.json").is_file()
    with pytest.raises(DpzoError, match="choose a new folder"):
        runs.train(parse_config(tree), runs.DataSource(file=data), tmp_path / "run")


def test_a_private_number_needs_a_budget_and_a_relation(data: Path, tiny_bert: Path, tmp_path: Path) -> None:
    for given, message in (
        ({"epsilon": None, "noise_multiplier": 2.0}, "takes its share of --epsilon"),
        ({"relation": "zero_out"}, "under zero_out the number of units is public"),
    ):
        tree = config_of(tiny_bert, **CLASSES).model_dump()
        tree["privacy"] |= PRIVATE_COUNT | given
        with pytest.raises(DpzoError, match=message):
            runs.train(parse_config(tree), runs.DataSource(file=data), tmp_path / "run")
        assert not (tmp_path / "run").exists()


FREE = (
    {"update": "momentum", "momentum": 0.5},
    {"update": "adam"},
    {"update": "sign"},
    {"shrinkage": "snr"},
    {"ema": 0.5},
    {"estimator": "forward"},
    {"directions": "orthogonal"},
    {"density": 0.5},
    {"direction_rank": 1},
)


@pytest.mark.parametrize("options", FREE, ids=lambda options: "-".join(map(str, options.values())))
def test_free_options_change_no_guarantee_and_replay(
    train: Callable[..., Made], tiny_bert: Path, head: Made, tmp_path: Path, options: dict[str, Any]
) -> None:
    tree = head.config.model_dump()
    tree["training"] |= options
    run = train(parse_config(tree))
    header, plain = read(run.folder).header, read(head.folder).header
    assert header["plan"] == plain["plan"]
    assert run.card["epsilon"] == head.card["epsilon"]
    assert (header["update"], header["directions"], header["estimator"]) != (
        plain["update"],
        plain["directions"],
        plain["estimator"],
    )
    assert runs.replay(run.folder, tmp_path / "again").equals_run


def test_a_basis_is_found_from_anywhere_and_a_changed_one_is_refused(
    data: Path, tiny_bert: Path, head: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its absolute path; where it has moved, in the working directory."""
    shapes = {name: shape for name, shape, _ in read(head.folder).header["parameters"]}
    there, run, told = tmp_path / "there" / "basis.safetensors", tmp_path / "run", list[str]()
    there.parent.mkdir()
    made = torch.Generator().manual_seed(0)
    safetensors.torch.save_file({n: torch.randn(3, *s, generator=made) for n, s in shapes.items()}, there)
    monkeypatch.chdir(there.parent)
    runs.train(with_values(head.config, training={"basis": "basis.safetensors"}), data, run, tell=told.append)
    monkeypatch.chdir(tmp_path)
    header = read(run).header
    assert header["plan"] == read(head.folder).header["plan"]
    assert header["config"]["training"]["basis"] == str(there)
    assert [line for line in told if "will name the public basis by its path" in line and str(there) in line]
    assert runs.replay(run, tmp_path / "again").equals_run
    here = there.rename(tmp_path / there.name)
    assert runs.replay(run, tmp_path / "moved").equals_run
    safetensors.torch.save_file({n: torch.randn(3, *s, generator=made) for n, s in shapes.items()}, here)
    with pytest.raises(DpzoError, match="its directions is not the one found now"):
        runs.replay(run, tmp_path / "other")
    here.unlink()
    with pytest.raises(DpzoError, match=r"there/basis\.safetensors is missing or cannot be read"):
        runs.replay(run, tmp_path / "other")


# --- what Python takes, and where the base model lies


def forms(config: RunConfig, folder: Path) -> dict[str, Any]:
    """One config in every form that a caller may give."""
    (folder / "config.yaml").write_text(dump_config(config))
    tree = config.model_dump(mode="json")
    flat = {f"{group}.{name}": value for group, fields in tree.items() for name, value in fields.items()}
    path = folder / "config.yaml"
    return {"config": config, "groups": tree, "names": flat, "text": str(path), "path": path}


def test_a_config_may_come_in_any_form(full: Made, tmp_path: Path) -> None:
    assert {name for name, form in forms(full.config, tmp_path).items() if as_config(form) != full.config} == set()
    for strange in (3, ["model"], None, object()):
        with pytest.raises(DpzoError, match="config: is a"):
            as_config(strange)  # type: ignore[arg-type]


def test_a_source_may_be_a_path_or_several(tmp_path: Path) -> None:
    one, two = str(tmp_path / "a.csv"), tmp_path / "b.csv"
    assert runs.DataSource.of(one) == runs.DataSource(file=one)
    assert runs.DataSource.of([one, two]).places == (one, two)
    assert runs.DataSource(folder=str(tmp_path)).data_folder == tmp_path
    for strange in (3, [], [3], {"file": one}, None):
        with pytest.raises(DpzoError, match="give a path"):
            runs.DataSource.of(strange)  # type: ignore[arg-type]
    with pytest.raises(DpzoError, match="data: file is a list"):
        runs.DataSource(file=[one])  # type: ignore[arg-type]


def test_every_entry_of_python_takes_texts_for_paths(
    full: Made, tmp_path: Path, linear: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dpzo

    tree, data, run = full.config.model_dump(mode="json"), str(full.data), str(tmp_path / "run")
    monkeypatch.chdir(Path(full.config.model.name).parent)
    tree["model"]["name"] = f"./{Path(full.config.model.name).name}"
    card = dpzo.finetune(data=data, config=tree, output=run, nonprivate_randomness=linear.Noise).card
    monkeypatch.chdir(tmp_path)  # a relative name is found from anywhere
    assert dpzo.resume(run, nonprivate_randomness=linear.Noise).card == card
    assert dpzo.evaluate(run, data)["metric"] == "loss"
    assert len(dpzo.generate(run, "once", max_new_tokens=2)) == 1
    assert runs.replay(run, str(tmp_path / "rebuilt")).equals_run is True
    assert read(Path(run)).header["base"]["name"] == full.config.model.name
    for call in (dpzo.resume, dpzo.evaluate, dpzo.generate, runs.replay):
        with pytest.raises(DpzoError, match="run: is a int"):
            call(3, *([data] if call is not dpzo.resume else []))  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # between peft and transformers
def test_an_adapter_of_a_relative_base_loads_by_plain_peft_from_anywhere(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.chdir(tiny_llama.parent)
    runs.train(config_of(Path(tiny_llama.name), "lora", **COMPLETION), data, tmp_path / "run", tell=told.append)
    monkeypatch.chdir(tmp_path)
    adapter = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tiny_llama)
    assert AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "model") is not None
    assert [line for line in told if "will name the base model by its path" in line and str(tiny_llama) in line]


def test_a_base_that_has_moved_is_named_with_base(train: Callable[..., Made], tiny_llama: Path, tmp_path: Path) -> None:
    here = shutil.copytree(tiny_llama, tmp_path / "here")
    made = train(config_of(here, "lora", **COMPLETION))
    moved = here.rename(tmp_path / "moved")
    asked = {
        "evaluate": lambda **base: trained_model.evaluate(made.folder, made.data, **base),
        "generate": lambda **base: trained_model.generate(made.folder, "once", max_new_tokens=2, **base),
        "replay": lambda **base: runs.replay(made.folder, tmp_path / "rebuilt", **base),
        "resume": lambda **base: runs.resume(made.folder, **base),
    }
    for name, ask in asked.items():
        with pytest.raises(DpzoError, match="name it with --base"):
            ask()
        with pytest.raises(DpzoError, match=r"^--base .*no such folder"):
            ask(base=tmp_path / "nowhere")
        assert ask(base=str(moved)) is not None, name


def test_a_relative_name_of_old_is_found_by_the_owners_own_note(lora: Made, tmp_path: Path) -> None:
    """Version 0.1.0 kept a relative name as it was given; local.yaml knows where it was."""
    assert found_base(lora.folder, "my-model", None) == lora.config.model.name
    assert found_base(lora.folder, "my-model", "elsewhere") == "elsewhere"
    assert found_base(lora.folder, lora.config.model.name, None) is None
    assert found_base(tmp_path, "my-model", None) is None


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_prompt_is_the_users_turn_in_a_run_of_chats(lora: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, loaded = trained_model._finished_model(lora.folder, None)
    tokenizer = loaded.tokenizer
    tokenizer.chat_template = CHAT_TEMPLATE
    (ids,) = chat_prompts(tokenizer, ["hello"])
    plain = tokenizer("<user> hello\n<assistant>", add_special_tokens=False).input_ids
    assert [token for token in ids if token != tokenizer.bos_token_id] == plain
    assert ids.count(tokenizer.bos_token_id) == 1
    seen: list[Any] = []
    chat = lora.config.model_copy(update={"data": lora.config.data.model_copy(update={"kind": "chat"})})
    monkeypatch.setattr(trained_model, "_finished_model", lambda run, base: (chat, runs.task_of(lora.config), loaded))
    monkeypatch.setattr(
        trained_model, "continue_prompts", lambda loaded, prompts, **rest: seen.append(prompts) or ("",)
    )
    trained_model.generate(lora.folder, "hello")
    assert seen == [[ids]]
    tokenizer.chat_template = "{{ raise_exception('no ' + messages[0]['content']) }}"
    with pytest.raises(DpzoError, match="--prompt: the model's chat template cannot render it") as refused:
        chat_prompts(tokenizer, ["secret"])
    assert "secret" not in str(refused.value)


def test_a_finished_run_is_known(head: Made, tmp_path: Path) -> None:
    assert finished_card(head.folder) == head.card
    for number, spoil in enumerate(("model/trained.json", "privacy_card.md", "model/head.safetensors")):
        copy = shutil.copytree(head.folder, tmp_path / str(number))
        for path in (copy / "model").glob("*.safetensors") if spoil.endswith("safetensors") else [copy / spoil]:
            path.unlink()
        assert finished_card(copy) is None


def test_a_run_is_set_aside_and_never_deleted(head: Made, tmp_path: Path) -> None:
    folder, told = shutil.copytree(head.folder, tmp_path / "run"), []
    for number in (1, 2):
        set_aside(folder, told.append)
        assert not folder.exists()
        aside = tmp_path / f"run.{number}"
        assert read(aside).num_steps == STEPS
        assert f"kept in {aside}: what it spent of ε stays spent" in told[-1]
        shutil.copytree(head.folder, folder)
    with claimed(folder), pytest.raises(DpzoError, match="another process is working"):
        set_aside(folder, told.append)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").touch()
    set_aside(other, told.append)
    assert (other / "notes.txt").exists()
