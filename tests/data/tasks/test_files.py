"""A user's files: what is written is read back, and no error shows a record."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpzo.data.tasks import load_records, read_table
from dpzo.errors import DpzoError

SECRET = "zxqv"
"""Every cell of a bad file holds it, and no message may."""

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
reuses_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@reuses_folder
@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8),
    name=st.sampled_from(["t.csv", "t.tsv", "t.csv.gz", "T.CSV"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    everything=st.booleans(),
    mark=st.booleans(),
)
def test_csv_round_trip(
    tmp_path: Path, rows: list[tuple[str, str]], name: str, newline: str, everything: bool, mark: bool
) -> None:
    # Before Python 3.13 the writer left a carriage return unquoted, which before a line feed cannot be read back.
    everything = everything or any("\r" in cell for row in rows for cell in row)
    stream = io.StringIO(newline="")
    writer = csv.writer(
        stream,
        delimiter="\t" if ".tsv" in name else ",",
        lineterminator=newline,
        quoting=csv.QUOTE_ALL if everything else csv.QUOTE_MINIMAL,
    )
    writer.writerow(("text", "label"))
    writer.writerows(rows)
    path = _write(tmp_path / name, stream.getvalue().encode("utf-8-sig" if mark else "utf-8"))
    assert [(row["text"], row["label"]) for _, row in read_table(path)] == rows


@reuses_folder
@given(
    rows=st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=8),
    name=st.sampled_from(["t.jsonl", "t.jsonl.gz"]),
    ascii_only=st.booleans(),
    mark=st.booleans(),
)
def test_jsonl_round_trip(tmp_path: Path, rows: list[tuple[str, str]], name: str, ascii_only: bool, mark: bool) -> None:
    lines = [json.dumps({"prompt": a, "completion": b}, ensure_ascii=ascii_only) for a, b in rows]
    path = _write(tmp_path / name, "\n".join(lines).encode("utf-8-sig" if mark else "utf-8"))
    records = load_records(path, kind="completion")
    assert list(zip(records.prompts, records.completions, strict=True)) == rows


def test_row_numbers_are_the_lines_of_an_editor(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", b'text,label\r\n"two\nlines\r\nor\rmore",a\r\n\r\nlast,b')
    assert [row for row, _ in read_table(path)] == [2, 6]
    path = _write(tmp_path / "t.jsonl", b'\n{"a": 1}\n  \n{"a": 2}\n')
    assert [row for row, _ in read_table(path)] == [2, 4]


def test_a_quote_inside_an_unquoted_field_is_a_character(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", b'text,label\na 5" nail,x\n')
    assert next(read_table(path))[1] == {"text": 'a 5" nail', "label": "x"}
    path = _write(tmp_path / "t.tsv", b'"open\tx\n')
    assert next(read_table(path, columns=("text", "label"), quoted=False))[1] == {"text": '"open', "label": "x"}


def test_a_carriage_return_inside_a_line_is_a_character(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", b"text,label\none\rtwo,x\n")
    assert [values["text"] for _, values in read_table(path)] == ["one\rtwo"]


def test_a_field_has_no_limit_and_the_limit_of_the_csv_module_is_left_alone(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    for cell in ("y" * (limit + 1), '"' + 'y""\n' * limit + '"'):
        path = _write(tmp_path / "t.csv", f"text,label\n{cell},a\n".encode())
        assert len(load_records(path, labels=["a", "b"]).texts[0]) > limit
    assert csv.field_size_limit() == limit


def test_labels_are_compared_without_outer_space_and_kept_in_declared_order(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", "text,label\n,b \n  , a\nعربي 🙂,b\n".encode())
    records = load_records(path, labels=[" a", "b"])
    assert records.labels is not None
    assert records.labels.tolist() == [1, 0, 1]
    assert list(records.texts) == ["", "  ", "عربي 🙂"]


def test_json_numbers_and_truth_values_are_labels(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.jsonl", b'{"text": "", "label": 1}\n{"text": "", "label": true}')
    records = load_records(path, labels=["true", "1"])
    assert records.labels is not None
    assert records.labels.tolist() == [1, 0]


def test_a_lone_surrogate_becomes_a_replacement_character(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.jsonl", rb'{"text": "a\ud83db\ud83d\ude42\u0000", "label": "x"}')
    assert load_records(path, labels=["x", "y"]).texts[0] == "a\ufffdb🙂\0"


def test_units_are_numbered_by_first_appearance(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", b"text,label,who\n,a,z9\n,b, k1 \n,a,z9 \n")
    records = load_records(path, labels=["a", "b"], unit_column="who")
    assert records.units is not None
    assert records.units.tolist() == [0, 1, 0]
    assert records.num_units == 2


S = SECRET
BAD_FILES: list[tuple[str, bytes | str, dict[str, Any], str]] = [
    ("empty.csv", "", {}, "is empty"),
    ("blank.csv", "\n\n", {}, "is empty"),
    ("header.csv", "text,label\n", {}, "no records"),
    ("empty.jsonl", " \n", {}, "is empty"),
    ("empty.csv.gz", "", {}, "is empty"),
    ("unknown.csv", f"text,label\n{S},a\n{S},{S}\n", {}, "row 3: column 'label' holds a label that is not declared"),
    ("index.csv", f"text,label\n{S},0\n", {}, "row 2: column 'label' holds a label that is not declared"),
    ("case.csv", f"text,label\n{S},A\n", {}, "declared are 'a', 'b'"),
    ("nolabel.csv", f"text,label\n{S}, \n", {}, "row 2: column 'label' is empty"),
    ("missing.csv", f"text,intent\n{S},a\n", {}, "no column 'label'; name another (it has 'text', 'intent')"),
    ("near.csv", f"text,Labels\n{S},a\n", {}, "did you mean 'Labels'"),
    ("headerless.csv", f"{S} one,{S}\n{S} two,a\n", {}, "add a header if the file has none"),
    ("headerless.jsonl", f'{{"{S}": "{S}"}}', {}, "has no column 'text'"),
    ("unit.csv", f"text,label\n{S},a\n", {"unit_column": "who"}, "no column 'who'"),
    ("nounit.csv", f"text,label,who\n{S},a,\n", {"unit_column": "who"}, "row 2: column 'who' is empty"),
    ("twice.csv", f"{S},text,{S}\n{S},a,{S}\n", {}, "columns 1 and 3 of the header have one name"),
    ("more.csv", f"text,label\n{S},a,{S}\n", {}, "row 2: has more fields than columns"),
    ("fewer.csv", f"text,label\n{S},a\n{S}\n", {}, "row 3: has fewer fields than columns"),
    ("open.csv", f'text,label\n{S},a\n"{S}\n{S},a\n', {}, "row 3: opens a quote that is never closed"),
    ("after.csv", f'text,label\n"{S}"{S},a\n', {}, "row 2: has text after a closing quote"),
    ("latin.csv", f"text,label\n{S},a\n{S}é,a\n".encode("latin-1"), {}, "row 3: is not UTF-8"),
    ("utf16.csv", f"text,label\n{S},a\n".encode("utf-16-le"), {}, "row 1: holds a zero byte"),
    ("cut16.csv", f"text,label\n{S},a\n".encode("utf-16")[:-1], {}, "row 1: is not UTF-8"),
    ("array.json", f'[{{"text": "{S}", "label": "a"}},\n["{S}"]]', {}, "row 2: is not a JSON object"),
    ("cut.json", f'[{{"text": "{S}", "label": "a"}},\n', {}, "row 2: is not valid JSON"),
    ("tail.json", f'[{{"text": "{S}", "label": "a"}}] {S}', {}, "row 1: is not valid JSON"),
    ("comma.json", f'[{{"text": "{S}", "label": "a"}},]', {}, "row 1: is not valid JSON"),
    ("none.json", "[ ]", {}, "has no records"),
    ("object.json", f'{{\n"data": ["{S}"]}}', {}, "row 1: begins a JSON object over several lines"),
    ("sheet.xlsx", S, {}, "is a spreadsheet; save it as csv"),
    ("zero.csv", f"text,label\n{S}\0,a\n", {}, "row 2: holds a zero byte"),
    ("not.csv.gz", "plain", {}, "not a whole gzip file"),
    ("broken.jsonl", f'{{"text": "{S}", "label": "a"}}\n{{"text": "{S}"', {}, "row 2: is not valid JSON"),
    ("deep.jsonl", "[" * 100_000, {}, "row 1: is not valid JSON"),
    ("digits.jsonl", '{"text": "", "label": ' + "9" * 5000 + "}", {}, "row 1: is not valid JSON"),
    ("latin.jsonl", f'{{"text": "{S}é"}}'.encode("latin-1"), {}, "row 1: is not UTF-8"),
    ("list.jsonl", f'["{S}"]', {}, "row 1: is not a JSON object"),
    ("keys.jsonl", f'{{"{S}": 1, "{S}": 2}}', {}, "row 1: names one key twice"),
    ("lacks.jsonl", f'{{"text": "{S}", "label": "a"}}\n{{"{S}": "a"}}', {}, "row 2: lacks the column 'text'"),
    ("number.jsonl", '{"text": 813705, "label": "a"}', {}, "row 1: column 'text' holds a number"),
    ("null.jsonl", '{"text": null, "label": "a"}', {}, "column 'text' holds null"),
    ("object.jsonl", f'{{"text": {{"{S}": 1}}, "label": "a"}}', {}, "column 'text' holds an object"),
    ("many.jsonl", f'{{"text": "{S}", "label": ["{S}"]}}', {}, "column 'label' holds a list or an object"),
    ("nulllabel.jsonl", f'{{"text": "{S}", "label": null}}', {}, "column 'label' is empty"),
    ("half.jsonl", f'{{"text": "{S}", "label": 0.5}}', {}, "not declared"),
    ("data.txt", S, {}, "cannot tell its format"),
    ("undeclared.csv", f"text,label\n{S},a\n", {"labels": None}, "--labels: declare the labels"),
    ("one.csv", f"text,label\n{S},a\n", {"labels": ["a"]}, "two or more"),
    ("same.csv", f"text,label\n{S},a\n", {"labels": ["a", "a "]}, "declared twice"),
    ("void.csv", f"text,label\n{S},a\n", {"labels": ["a", ""]}, "is empty"),
    ("both.csv", f"text,label\n{S},a\n", {"text_column": "label"}, "named for two purposes"),
    ("completion.csv", f"text,label\n{S},a\n", {"kind": "completion"}, "no column 'prompt'"),
]


@pytest.mark.parametrize(("name", "data", "options", "message"), BAD_FILES, ids=[case[0] for case in BAD_FILES])
def test_a_bad_file_gets_one_line_that_shows_no_record(
    tmp_path: Path, name: str, data: bytes | str, options: dict[str, Any], message: str
) -> None:
    raw = data.encode() if isinstance(data, str) else data
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name == "empty.csv.gz" else raw)
    with pytest.raises(DpzoError) as caught:
        load_records(path, **{"labels": ["a", "b"], **options})
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert name in text or text.startswith(("--labels", "one column"))
    printed = "".join(traceback.format_exception(caught.value))
    for private in (SECRET, "813705"):
        assert private not in text
        assert private not in printed


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b"text,label\n" + os.urandom(3000).hex(",").replace(",", "x,a\n").encode())
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DpzoError, match="not a whole gzip file"):
        load_records(path, labels=["a", "b"])


def test_what_is_not_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DpzoError, match="is a folder"):
        load_records(tmp_path / "folder.csv", labels=["a", "b"])
    with pytest.raises(DpzoError, match="no such file"):
        load_records(tmp_path / "none.csv", labels=["a", "b"])
    with pytest.raises(DpzoError, match="cannot be read"):
        load_records(_write(tmp_path / "file", b"") / "t.csv", labels=["a", "b"])
    odd = tmp_path / "two\nlines.csv"
    with pytest.raises(DpzoError) as caught:
        load_records(odd, labels=["a", "b"])
    assert "\n" not in str(caught.value)


def test_a_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "t.csv", b"text,label\nx,a\n")
    if os.geteuid() == 0:  # root reads everything, so the refusal has to be staged

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError

        monkeypatch.setattr(Path, "open", refuse)
    else:
        path.chmod(0)
    with pytest.raises(DpzoError, match="permission"):
        load_records(path, labels=["a", "b"])


@reuses_folder
@given(data=st.binary(max_size=60), name=st.sampled_from(["t.csv", "t.tsv", "t.jsonl", "t.csv.gz"]))
def test_no_bytes_at_all_lead_to_anything_but_records_or_the_users_error(
    tmp_path: Path, data: bytes, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    message = ""
    try:
        load_records(path, labels=["a", "b"])
    except DpzoError as error:
        message = str(error)
    assert "\n" not in message


def sniffed(path: Path, asked: tuple[str, ...] = ("text", "label")) -> tuple[list[tuple[int, object]], list[str]]:
    """(row, its text) of all rows, and what was told of the file."""
    told: list[str] = []
    rows = [(row, (values["text"], values["label"])) for row, values in read_table(path, asked=asked, tell=told.append)]
    return rows, told


TWO = [(2, ("a, b; c", "x")), (3, ("d", "y"))]
FORMS: list[tuple[str, bytes, str]] = [
    ("semicolons.csv", b'text;label\n"a, b; c";x\nd;y\n', "separated by semicolons, by its header"),
    ("tabs.csv", b"text\tlabel\na, b; c\tx\nd\ty\n", "separated by tabs"),
    ("bars.csv", b"text|label\na, b; c|x\nd|y\n", "separated by vertical bars"),
    ("commas.tsv", b'text,label\n"a, b; c",x\nd,y\n', "separated by commas"),
    ("both.csv", b'text;label;"one, or more"\n"a, b; c";x;1\nd;y;2\n', "separated by semicolons"),
    ("mixed.csv", b'text;label;note, if any\n"a, b; c";x;1\nd;y;2\n', "separated by semicolons"),
    ("tab.tab", b"text\tlabel\na, b; c\tx\nd\ty\n", ""),
    ("quoted.csv", b'"text","label","and; more"\n"a, b; c",x,1\nd,y,2\n', ""),
    ("wide.csv", 'text;label\n"a, b; c";x\nd;y\n'.encode("utf-16"), "read as UTF-16"),
    ("array.jsonl", b'[\n{"text": "a, b; c", "label": "x"},\n{"text": "d", "label": "y"}]\n', "one JSON array"),
    ("wide.json", '[\n{"text": "a, b; c", "label": "x"},\n{"text": "d", "label": "y"}]'.encode("utf-16"), "UTF-16"),
    ("lines.json", b'\n{"text": "a, b; c", "label": "x"}\n{"text": "d", "label": "y"}\n', ""),
    ("lines.ndjson", b'\n{"text": "a, b; c", "label": "x"}\n{"text": "d", "label": "y"}\n', ""),
]


@pytest.mark.parametrize(("name", "content", "said"), FORMS, ids=[form[0] for form in FORMS])
def test_the_form_of_a_file_is_read_off_its_beginning_and_told(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    rows, told = sniffed(_write(tmp_path / name, content))
    assert rows == TWO
    assert said in " ".join(told)
    assert bool(told) == bool(said)
    assert "a, b" not in " ".join(told)


def test_the_delimiter_that_a_first_line_states_is_taken(tmp_path: Path) -> None:
    rows, told = sniffed(_write(tmp_path / "t.csv", b'sep=;\r\ntext;label\r\n"a, b; c";x\r\n'))
    assert rows == [(3, ("a, b; c", "x"))]
    assert "as its first line states" in told[0]


@given(
    records=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5),
    header=st.sampled_from(["text,label", "text;label"]),
)
@reuses_folder
def test_no_record_decides_the_delimiter(tmp_path: Path, records: list[tuple[str, str]], header: str) -> None:
    mark = header[4]
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=mark, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(records)
    rows, _ = sniffed(_write(tmp_path / "t.csv", f"{header}\n{stream.getvalue()}".encode()))
    assert [values for _, values in rows] == records


@reuses_folder
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=9), max_size=3), min_size=1, max_size=5),
    indent=st.sampled_from([None, 1, "\t"]),
)
def test_a_json_array_is_read_as_its_objects(tmp_path: Path, rows: list[dict[str, str]], indent: Any) -> None:
    text = json.dumps(rows, indent=indent)
    found = list(read_table(_write(tmp_path / "t.json", text.encode())))
    assert [values for _, values in found] == rows
    starts = [row for row, _ in found]
    assert starts == sorted(starts)
    if indent is not None:
        lines = text.split("\n")
        assert all(lines[row - 1].lstrip().startswith("{") for row in starts)


def test_columns_are_listed_where_the_first_row_is_surely_a_header(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", b"review;stars\nzxqv;5\n")
    with pytest.raises(DpzoError, match=r"no column 'text'; name another \(it has 'review', 'stars'\)"):
        load_records(path, labels=["a", "b"])
    path = _write(tmp_path / "t.csv", b"zxqv is ill,question\nzxqv,a\n")
    with pytest.raises(DpzoError, match="is not shown: it may be a record") as told:
        load_records(path, labels=["a", "b"])
    assert "zxqv" not in str(told.value)
