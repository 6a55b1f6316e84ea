"""A made-up few-shot SST-2: 32 records a split in two published layouts, which a random BERT reads in no time."""

from __future__ import annotations

import pytest

from dpzo.experiments.compare.public_data import TaskFolder

WORDS = ("good", "bad")


@pytest.fixture(scope="session")
def few_shot(tmp_path_factory: pytest.TempPathFactory) -> TaskFolder:
    folder = tmp_path_factory.mktemp("few-shot")
    for seed in (13, 21):
        own = folder / "SST-2" / f"16-{seed}"
        own.mkdir(parents=True)
        for split in ("train", "dev", "test"):
            lines = [f"a {WORDS[i % 2]} film {i * seed % 97} {split}\t{1 - i % 2}" for i in range(32)]
            (own / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return TaskFolder(folder)
