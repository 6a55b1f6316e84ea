"""Formats in which the papers' data sets are passed around, each as a stream of flat rows.

A reader takes a path and yields (row number, {column: value}). Column `references` holds every accepted answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from dpzo.data.tasks.tables import Row, fail, read_lines, read_table

REFERENCES = "references"


def labelled_lines(path: Path) -> Iterator[Row]:
    """`label text`, a space between: columns label, text. SST-5 in its Stanford form."""
    for row, line in read_lines(path):
        label, space, text = line.rstrip("\r\n").partition(" ")
        if not space:
            fail(path, row, "is not a label, a space and a text")
        yield row, {"label": label, "text": text}


def trec_lines(path: Path) -> Iterator[Row]:
    """`COARSE:fine question`, Latin-1: columns label (the coarse one), text."""
    for row, line in read_lines(path, "latin-1"):
        label, space, text = line.rstrip("\r\n").partition(" ")
        coarse, colon, _ = label.partition(":")
        if not space or not colon:
            fail(path, row, "is not COARSE:fine and a question")
        yield row, {"label": coarse, "text": text}


def last_label_tsv(path: Path) -> Iterator[Row]:
    """Tab-separated lines with a header whose last column is the last cell of a line, however many come before."""
    columns: list[str] = []
    for row, line in read_lines(path):
        cells = line.rstrip("\r\n").split("\t")
        if not columns:
            columns = cells
        elif len(cells) < len(columns) - 4:
            fail(path, row, "has fewer fields than columns")
        else:
            yield row, {**dict(zip(columns[:-1], cells, strict=False)), columns[-1]: cells[-1]}


def numbered_json(path: Path) -> Iterator[Row]:
    """One object `{"0": {…}, "1": {…}}`: its members, numbered from 1."""
    whole = _whole_json(path)
    if not isinstance(whole, dict):
        fail(path, None, 'is not one JSON object of the form {"0": {…}, "1": {…}}')
    for row, value in enumerate(whole.values(), start=1):
        yield row, _object(path, row, value)


def squad_json(path: Path) -> Iterator[Row]:
    """SQuAD 1.1's articles: columns title, context, question, answer (the first), references. A row is a question."""
    whole, row = _whole_json(path), 0
    try:
        for article in whole["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    row += 1
                    golds = [answer["text"] for answer in asked["answers"]]
                    yield (
                        row,
                        {
                            "title": article["title"].replace("_", " "),
                            "context": paragraph["context"],
                            "question": asked["question"],
                            "answer": golds[0],
                            REFERENCES: golds,
                        },
                    )
    except (KeyError, TypeError, IndexError, AttributeError):
        fail(path, row, "is not of SQuAD's form: data, paragraphs, qas, answers (rows counted in questions)")


def drop_prompts(path: Path) -> Iterator[Row]:
    """DROP as prompts (`context`, `completion`, `ref_text`): columns passage, question, answer, references."""
    for row, values in read_table(path):
        context, answer, golds = (values.get(name) for name in ("context", "completion", "ref_text"))
        if not isinstance(context, str) or not isinstance(answer, str) or not isinstance(golds, str):
            fail(path, row, "lacks context, completion or ref_text as texts")
        passage, mark, rest = context.removeprefix("Passage:").rpartition("\nQuestion:")
        if not mark:
            fail(path, row, "has no line 'Question:' in its context")
        yield (
            row,
            {
                "passage": passage.strip(),
                "question": rest.removesuffix("Answer:").strip(),
                "answer": answer.strip(),
                REFERENCES: [gold.strip() for gold in golds.split("|")],
            },
        )


def dart_records(path: Path) -> Iterator[Row]:
    """DART, in JSON or XML: columns entry, triples (`a : r : b | …`), text. A row is one sentence of an entry."""
    row = 0
    for entry, (triples, texts) in enumerate(_dart_entries(path), start=1):
        linear = " | ".join(" : ".join(part.strip() for part in triple) for triple in triples)
        for text in texts:
            row += 1
            yield row, {"entry": str(entry), "triples": linear, "text": text}


def multirc_answers(path: Path) -> Iterator[Row]:
    """MultiRC's passages: columns passage, question, answer, label. A row is one proposed answer."""
    row = 0
    for line, values in read_table(path):
        try:
            passage: Any = values["passage"]
            for asked in passage["questions"]:
                for proposed in asked["answers"]:
                    row += 1
                    yield (
                        row,
                        {
                            "passage": passage["text"],
                            "question": asked["question"],
                            "answer": proposed["text"],
                            "label": proposed["label"],
                        },
                    )
        except (KeyError, TypeError):
            fail(path, line, "is not of MultiRC's form: passage, text, questions, answers")


def wsc_spans(path: Path) -> Iterator[Row]:
    """WSC with its `target` spans: columns text, span1, span2, label."""
    for row, values in read_table(path):
        target: Any = values.get("target")
        try:
            spans = {"span1": target["span1_text"], "span2": target["span2_text"]}
        except (KeyError, TypeError):
            fail(path, row, "lacks target with span1_text and span2_text")
        yield row, {**values, **spans}


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    "labelled-lines": labelled_lines,
    "trec": trec_lines,
    "last-label-tsv": last_label_tsv,
    "numbered-json": numbered_json,
    "squad": squad_json,
    "drop-prompts": drop_prompts,
    "dart": dart_records,
    "multirc": multirc_answers,
    "wsc": wsc_spans,
}
"""Name of a format → its reader; `table` is `read_table`, which takes options of its own."""


def _dart_entries(path: Path) -> Iterator[tuple[list[list[str]], list[str]]]:
    if path.name.removesuffix(".gz").endswith(".xml"):
        try:
            root = ElementTree.fromstring(_whole_text(path).encode())
        except ElementTree.ParseError:
            fail(path, None, "is not whole XML; copy it again")
        for entry in root.iter("entry"):
            triples = [(triple.text or "").split(" | ") for triple in entry.iter("mtriple")]
            yield triples, [lex.text or "" for lex in entry.iter("lex")]
        return
    whole = _whole_json(path)
    try:
        for entry in whole:
            triples = [[str(part) for part in triple] for triple in entry["tripleset"]]
            yield triples, [annotation["text"] for annotation in entry["annotations"]]
    except (KeyError, TypeError):
        fail(path, None, "is not of DART's form: a list of tripleset and annotations")


def _whole_text(path: Path) -> str:
    return "".join(line for _, line in read_lines(path))


def _whole_json(path: Path) -> Any:
    try:
        return json.loads(_whole_text(path))
    except (ValueError, RecursionError):
        fail(path, None, "is not valid JSON; copy it again")


def _object(path: Path, row: int, value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        fail(path, row, "is not a JSON object (rows counted in records)")
    return value
