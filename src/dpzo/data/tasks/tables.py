"""csv, tsv, jsonl and json files as a stream of rows; an error names file and row and shows nothing of a record.

The csv module is not used: its limit on the size of a field is a global of the process, and its errors quote the input.
"""

from __future__ import annotations

import io
import json
import re
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from dpzo.data.tasks.archives import BROKEN, member_of, open_binary
from dpzo.errors import DpzoError

Row = tuple[int, Mapping[str, object]]
Tell = Callable[[str], None]

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_JSON = (".jsonl", ".ndjson", ".json")
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
"""What may separate the fields of a line."""

_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_STATED = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
"""The first line by which Excel states the delimiter of what follows."""


def untold(text: str) -> None:
    """Ignore progress lines."""


def read_table(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    quoted: bool = True,
    asked: Sequence[str] = (),
    tell: Tell = untold,
) -> Iterator[Row]:
    """Yield (row number, {column: value}) of each record of a `.csv`, `.tsv`, `.jsonl` or `.json` file, or its `.gz`.

    `archive.tar.xz!folder/file.tsv` names a file inside a tar or zip archive.

    - The row number is the physical line, from 1, on which the record begins: the one an editor shows. Lines end with
      a line feed, alone or after a carriage return.
    - csv: RFC 4180 with a header; quoted fields may hold delimiters, doubled quotes and line ends; a quote inside an
      unquoted field is an ordinary character; wholly empty lines are skipped; fields may have any size; values are str.
    - The delimiter is read off the header alone, never off a record: commas, tabs, semicolons or vertical bars. The
      one under which all of `asked` are columns is taken, else the one that the file's name stands for, else any that
      occurs. `tell` hears it where it is not the one of the name.
    - tsv: the same; `quoted=False` makes a quote an ordinary character everywhere.
    - `columns` names the columns of a csv or tsv file that has no header.
    - jsonl, json: one object a line, of any JSON values, blank lines skipped; or one array of objects, told by the
      bracket that begins it.
    - UTF-8, with or without a byte-order mark; UTF-16 with one.

    Errors: DpzoError, at the first row read or at the bad row: no such file, a folder, no permission, another
    extension, broken gzip, not UTF-8, binary, empty, a broken row, a duplicate column.
    """
    path = Path(path)
    suffix = _suffix(path)
    lines = read_lines(path, tell=tell)
    if suffix in _JSON:
        return _json_rows(path, lines, tell)
    if columns is not None:
        return _records(path, columns, _delimited_records(path, lines, _DELIMITERS[suffix], quoted))
    return _delimited_rows(path, lines, _Dialect(_DELIMITERS[suffix], quoted, asked), tell)


def shown(path: Path) -> str:
    """A path for an error message: on one line, whatever its name holds."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def fail(path: Path, row: int | None, problem: str) -> NoReturn:
    """Raise the user's error for a file and a row. `problem` must hold nothing of a record."""
    where = shown(path) if row is None else f"{shown(path)}, row {row}"
    # `from None` everywhere: the errors of json, codecs and zlib carry the input that they failed on.
    raise DpzoError(f"{where}: {problem}") from None


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    for suffix in (*_DELIMITERS, *_JSON):
        if name.endswith(suffix):
            return suffix
    if name.endswith((".xlsx", ".xls", ".ods")):
        fail(path, None, "is a spreadsheet; save it as csv (UTF-8) and give that file")
    fail(
        path,
        None,
        "cannot tell its format; name it .csv, .tsv or .jsonl (also .json, .parquet; the first ones with .gz)",
    )


def read_lines(path: Path, encoding: str = "utf-8", tell: Tell = untold) -> Iterator[tuple[int, str]]:
    """Physical lines, from 1, with their ends; decoded one at a time, so that a bad byte has a row number."""
    row = 0
    try:
        with open_binary(path) as stream:
            for row, raw in enumerate(stream, start=1):
                if row == 1 and encoding == "utf-8" and raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
                    tell(f"{shown(path)}: read as UTF-16 text, by the mark that it begins with")
                    text = (raw + stream.read()).decode("utf-16")
                    yield from enumerate(io.StringIO(text, newline="\n"), start=1)
                    return
                if b"\0" in raw:
                    fail(path, row, "holds a zero byte, so this is not a text file; save it as UTF-8 text")
                yield row, raw.decode("utf-8-sig" if row == 1 and encoding == "utf-8" else encoding)
    except UnicodeDecodeError:
        fail(path, row, "is not UTF-8 text; save the file as UTF-8")
    except IsADirectoryError:
        fail(path, None, "is a folder; give a file")
    except FileNotFoundError:
        inside = member_of(path) is not None
        fail(path, None, "the archive holds no such file; check it" if inside else "no such file; check the path")
    except PermissionError:
        fail(path, None, "may not be read; give yourself permission to read it")
    except (*BROKEN, zlib.error):
        if member_of(path) is not None:
            fail(path, None, "the archive is damaged; copy it again")
        fail(path, None, "is not a whole gzip file; copy it again, or drop .gz from its name if it is not compressed")
    except OSError as error:
        fail(path, None, f"cannot be read ({type(error).__name__}); check the disk and the path")


_INVALID = "is not valid JSON; each line must be one whole JSON object, or the file one array of objects"


def _json_rows(path: Path, lines: Iterator[tuple[int, str]], tell: Tell) -> Iterator[Row]:
    seen = False
    for row, line in lines:
        start = line.strip(" \t\r\n")
        if not start:
            continue
        if not seen and start.startswith("["):
            tell(f"{shown(path)}: read as one JSON array, by the bracket that it begins with")
            yield from _array_rows(path, row, line + "".join(rest for _, rest in lines))
            return
        if start == "{":
            fail(path, row, "begins a JSON object over several lines; write one object a line, or one array of objects")
        seen = True
        yield row, parse_object(path, row, line)
    if not seen:
        fail(path, None, "is empty; it needs one JSON object a line, or one array of objects")


def _array_rows(path: Path, row: int, text: str) -> Iterator[Row]:
    """The objects of one JSON array whose first line is `row`, decoded one at a time."""
    decoder = json.JSONDecoder(object_pairs_hook=_distinct)
    counted, place, more = 0, text.index("[") + 1, False

    def skipped(place: int) -> int:
        while text[place : place + 1] in (" ", "\t", "\r", "\n"):
            place += 1
        return place

    while True:
        place = skipped(place)
        row, counted = row + text.count("\n", counted, place), place
        if not more and text.startswith("]", place):
            fail(path, None, "has no records; give a file that has some")
        value, place = _decoded(path, row, lambda at=place: decoder.raw_decode(text, at))  # type: ignore[misc]
        yield row, _whole_object(path, row, value)
        more, place = True, skipped(place)
        if text.startswith("]", place) and skipped(place + 1) == len(text):
            return
        if not text.startswith(",", place):
            fail(path, row, _INVALID)
        place += 1


def parse_object(path: Path, row: int, line: str) -> dict[str, object]:
    """One JSON object of a line. Errors: DpzoError naming file and row."""
    return _whole_object(path, row, _decoded(path, row, lambda: json.loads(line, object_pairs_hook=_distinct)))


def _decoded(path: Path, row: int, decode: Callable[[], Any]) -> Any:
    try:
        return decode()
    except _DuplicateKey:
        fail(path, row, "names one key twice; keep one of them")
    except (ValueError, RecursionError):
        fail(path, row, _INVALID)


def _whole_object(path: Path, row: int, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        fail(path, row, 'is not a JSON object; each record must look like {"text": …, "label": …}')
    return value


class _DuplicateKey(Exception):
    pass


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKey
    return found


@dataclass(frozen=True)
class _Dialect:
    """How the header of a delimited file is read: its name's delimiter, quotes, the columns that should be in it."""

    delimiter: str
    quoted: bool
    asked: Sequence[str]


def _delimited_rows(path: Path, lines: Iterator[tuple[int, str]], dialect: _Dialect, tell: Tell) -> Iterator[Row]:
    first = next(((row, line) for row, line in lines if _without_end(line)), None)
    stated = None if first is None else _STATED.fullmatch(first[1])
    if stated is not None:
        delimiter, told = stated[1], "as its first line states"
    elif first is None:
        delimiter, told = dialect.delimiter, ""
    else:
        delimiter, told = _sniffed(first[1], dialect), "by its header"
        lines = chain([first], lines)
    if delimiter != dialect.delimiter:
        tell(f"{shown(path)}: fields are separated by {_NAMES.get(delimiter, repr(delimiter))}, {told}")
    records = _delimited_records(path, lines, delimiter, dialect.quoted)
    header_row, cells = next(records, (0, None))
    if cells is None:
        fail(path, None, "is empty; it needs a header and at least one record")
    # A header is the one row whose cells are stripped: "text, label" is how people write it.
    columns = [cell.strip() for cell in cells]
    _check_header(path, header_row, columns)
    yield from _records(path, columns, records)


def _sniffed(header: str, dialect: _Dialect) -> str:
    bare = _QUOTED.sub("", header) if dialect.quoted else header
    found = [mark for mark in dict.fromkeys((dialect.delimiter, *_NAMES)) if mark in bare]
    for mark in found:
        if dialect.asked and set(dialect.asked) <= {cell.strip().strip('"') for cell in header.split(mark)}:
            return mark
    return found[0] if found else dialect.delimiter


def _records(path: Path, columns: Sequence[str], records: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
    seen = False
    for row, cells in records:
        if len(cells) != len(columns):
            comparison = "more" if len(cells) > len(columns) else "fewer"
            # Without a header in the file the counts are the format's own, and no less a help.
            fail(path, row, f'has {comparison} fields than columns; put "…" around a field that holds the delimiter')
        seen = True
        yield row, dict(zip(columns, cells, strict=True))
    if not seen:
        fail(path, None, "has no records; add them below the header")


def _check_header(path: Path, row: int, columns: Sequence[str]) -> None:
    # Positions, not names: in a file without a header these cells are a record.
    first: dict[str, int] = {}
    for position, name in enumerate(columns, start=1):
        if name in first:
            fail(path, row, f"columns {first[name]} and {position} of the header have one name; rename one of them")
        first[name] = position


def _delimited_records(
    path: Path, lines: Iterator[tuple[int, str]], delimiter: str, quoted: bool
) -> Iterator[tuple[int, list[str]]]:
    for row, line in lines:
        if not _without_end(line):
            continue
        cells: list[str] = []
        position = 0
        while True:
            if quoted and line.startswith('"', position):
                cell, line, position = _quoted_cell(path, row, lines, line, position + 1)
                cells.append(cell)
                if _without_end(line[position:]) and not line.startswith(delimiter, position):
                    fail(path, row, 'has text after a closing quote; write a quote inside a quoted field as ""')
                end = position if line.startswith(delimiter, position) else -1
            else:
                end = line.find(delimiter, position)
                cells.append(line[position:end] if end >= 0 else _without_end(line[position:]))
            if end < 0:
                break
            position = end + 1
        yield row, cells


def _quoted_cell(
    path: Path, row: int, lines: Iterator[tuple[int, str]], line: str, position: int
) -> tuple[str, str, int]:
    """Read to the closing quote, over as many lines as it takes; return (cell, last line, position after the quote)."""
    parts: list[str] = []
    while True:
        end = line.find('"', position)
        if end < 0:
            parts.append(line[position:])
            _, following = next(lines, (0, None))
            if following is None:
                fail(path, row, 'opens a quote that is never closed; close it, or write a leading quote as """')
            line, position = following, 0
        elif line.startswith('""', end):
            parts.append(line[position : end + 1])
            position = end + 2
        else:
            parts.append(line[position:end])
            return "".join(parts), line, end + 1


def _without_end(text: str) -> str:
    # A carriage return elsewhere is data: many writers leave it unquoted when their own lines end with a line feed.
    return text.removesuffix("\n").removesuffix("\r")
