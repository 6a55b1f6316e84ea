"""Whole commands on parquet, saved data sets, several files and chats leave no trace of the records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers


@pytest.fixture
def place(tmp_path: Path, secrets: Any) -> Any:
    """The scratch home of the secrets test, beside a folder with its records in every form."""
    for name in ("scratch", "private"):
        (tmp_path / name).mkdir()
    rows = secrets._rows()
    table = pa.Table.from_pylist(rows)
    private = tmp_path / "private"
    pq.write_table(table, private / "train.parquet")
    (private / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:7]))
    datasets.DatasetDict({"train": datasets.Dataset(table)}).save_to_disk(str(private / "saved"))
    turns = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in rows
    ]
    pq.write_table(pa.table({"messages": turns}), private / "chats.parquet")
    broken = {"messages": [{"role": "user", "content": f"{secrets.MARK}a"}]}
    (private / "silent.jsonl").write_text(json.dumps(broken) + "\n")
    return secrets.Place(tmp_path / "scratch", private)


@pytest.fixture
def chat_model(tiny_llama: Path, tmp_path: Path, templates: dict[str, str]) -> Path:
    """The tiny Llama with a chat template."""
    folder = tmp_path / "chat-model"
    transformers.AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = templates["plain"]
    tokenizer.save_pretrained(folder)
    return folder


def test_data_of_every_form_leaves_no_trace(place: Any, secrets: Any, tiny_bert: Path, chat_model: Path) -> None:
    more = ("--data", str(place.private / "more.jsonl"))
    chat = ("--kind", "chat", "--max-length", "24")
    codes, out, err = place.run(
        {"arguments": secrets._train(place, tiny_bert, "a", "train.parquet", *secrets.CLASSES, *more)},
        {
            "arguments": secrets._train(place, tiny_bert, "b", "saved", *secrets.CLASSES, "--split", "train"),
            "interrupt": 2,
        },
        {"arguments": ["resume", "b"]},
        {"arguments": secrets._train(place, chat_model, "c", "chats.parquet", *chat)},
        {
            "arguments": [
                *("evaluate", "c", "--data", str(place.private / "chats.parquet"), "--data-is", "private"),
            ]
        },
        {"arguments": secrets._train(place, chat_model, "d", "silent.jsonl", *chat)},
        {"arguments": secrets._train(place, tiny_bert, "e", "saved", *secrets.CLASSES, "--split", "trian")},
        {"arguments": secrets._train(place, tiny_bert, "f", "train.parquet", *secrets.CLASSES, "--text-column", "txt")},
    )
    assert codes == [0, 130, 0, 0, 0, 2, 2, 2], err.decode()
    told = [line for line in err.decode().splitlines() if line.startswith("dpzo: error: ")]
    assert len(told) == 3
    assert "silent.jsonl, row 1: has no message of role 'assistant'" in told[0]
    assert "did you mean train?" in told[1]
    assert "train.parquet: has no column 'txt' (--text-column); did you mean 'text'?" in told[2]
    assert place.leaks(out, err) == []
