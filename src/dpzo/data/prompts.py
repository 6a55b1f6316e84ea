"""Prompts and completions as records: a pair of columns, or Alpaca's instruction, input and output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from dpzo.data.chats import empty
from dpzo.data.tasks.records import COMPLETION, PROMPT
from dpzo.data.tasks.tables import Row, Tell, fail, shown, untold

INSTRUCTION, INPUT, OUTPUT = "instruction", "input", "output"
_CHANGING = ("system", "history", "tools", "chosen", "rejected", "images", "videos", "audios")
"""Known columns beside a prompt that would change it, and that are not read."""

ALPACA = (INSTRUCTION, INPUT, OUTPUT, *_CHANGING)
"""Columns of a completion's row that are looked at if they are there."""


def prompt_rows(
    path: Path, rows: Iterable[Row], prompt: str = PROMPT, completion: str = COMPLETION, tell: Tell = untold
) -> Iterator[Row]:
    """The rows, with Alpaca's columns put together into the columns `prompt` and `completion` where these are missing.

    The prompt is `### Instruction:`, the instruction, `### Input:` and the input where there is one, `### Response:`,
    as in Stanford Alpaca without its opening sentence; the completion is the output. Rows without these columns, and
    those whose columns were named otherwise, are passed on. `tell` is called once if Alpaca's columns were found.

    Errors: DpzoError naming file and row: messages in place of texts, a known column that would change the prompt.
    """
    told = False
    for row, values in rows:
        if isinstance(values.get(prompt), list) or isinstance(values.get(completion), list):
            _refuse_messages(path, row)
        for name in _CHANGING:
            if name not in (prompt, completion) and not empty(values.get(name)):
                fail(
                    path, row, f"column {name!r} is not read and would change the prompt; empty it, or drop the column"
                )
        alpaca = (prompt, completion) == (PROMPT, COMPLETION) and not {PROMPT, COMPLETION} & values.keys()
        alpaca = alpaca and {INSTRUCTION, OUTPUT} <= values.keys()
        if alpaca and not told:
            tell(f"{shown(path)}: prompts made of Alpaca's columns instruction and input, completions of output")
            told = True
        yield row, {**values, **_alpaca(path, row, values)} if alpaca else values


def _alpaca(path: Path, row: int, values: Mapping[str, object]) -> dict[str, object]:
    instruction, context, output = (values.get(name) for name in (INSTRUCTION, INPUT, OUTPUT))
    if (
        not isinstance(instruction, str)
        or not isinstance(output, str)
        or not (empty(context) or isinstance(context, str))
    ):
        fail(path, row, "needs an instruction and an output that are texts, and an input that is one or missing")
    given = "" if empty(context) else f"### Input:\n{context}\n\n"
    return {PROMPT: f"### Instruction:\n{instruction}\n\n{given}### Response:\n", COMPLETION: output}


def _refuse_messages(path: Path, row: int) -> NoReturn:
    fail(
        path, row, "has a prompt or completion that is a list of messages, no text; give --kind chat, which reads both"
    )
