"""csv, tsv and jsonl files as a stream of rows; an error names the file and the row and shows nothing of a record.

The csv module is not used: its limit on the size of a field is a global of the process, and its errors quote the input.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from dpzo.errors import DpzoError
from dpzo.tasks.archives import BROKEN, member_of, open_binary

Row = tuple[int, Mapping[str, object]]

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_table(path: str | Path, *, columns: Sequence[str] | None = None, quoted: bool = True) -> Iterator[Row]:
    """Yield (row number, {column: value}) for each record of a `.csv`, `.tsv` or `.jsonl` file, also `.gz` of each.

    `archive.tar.xz!folder/file.tsv` names a file inside a tar or zip archive.

    - The row number is the physical line, from 1, on which the record begins: the one an editor shows. Lines end with
      a line feed, alone or after a carriage return.
    - csv: RFC 4180 with a header; quoted fields may hold delimiters, doubled quotes and line ends; a quote inside an
      unquoted field is an ordinary character; wholly empty lines are skipped; fields may have any size; values are str.
    - tsv: the same with tabs; `quoted=False` makes a quote an ordinary character everywhere.
    - `columns` names the columns of a csv or tsv file that has no header.
    - jsonl: one object a line, of any JSON values; blank lines are skipped.
    - UTF-8, with or without a byte-order mark.

    Errors: DpzoError, at the first row read or at the bad row: no such file, a folder, no permission, another
    extension, broken gzip, not UTF-8, binary, empty, a broken row, a duplicate column.
    """
    path = Path(path)
    suffix = _suffix(path)
    if suffix == ".jsonl":
        return _jsonl_rows(path)
    return _delimited_rows(path, _DELIMITERS[suffix], columns, quoted)


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
    for suffix in (*_DELIMITERS, ".jsonl"):
        if name.endswith(suffix):
            return suffix
    fail(path, None, "cannot tell its format; name it .csv, .tsv or .jsonl, or one of these with .gz")


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Physical lines, from 1, with their ends; decoded one at a time, so that a bad byte has a row number."""
    row = 0
    try:
        with open_binary(path) as stream:
            for row, raw in enumerate(stream, start=1):
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


def _jsonl_rows(path: Path) -> Iterator[Row]:
    seen = False
    for row, line in read_lines(path):
        if not line.strip(" \t\r\n"):
            continue
        seen = True
        yield row, parse_object(path, row, line)
    if not seen:
        fail(path, None, "is empty; it needs one JSON object a line")


def parse_object(path: Path, row: int, line: str) -> dict[str, object]:
    """One JSON object of a line. Errors: DpzoError naming file and row."""
    try:
        value = json.loads(line, object_pairs_hook=_distinct)
    except _DuplicateKey:
        fail(path, row, "names one key twice; keep one of them")
    except (ValueError, RecursionError):
        fail(path, row, "is not valid JSON; each line must be one whole JSON object")
    if not isinstance(value, dict):
        fail(path, row, 'is not a JSON object; each line must look like {"text": …, "label": …}')
    return value


class _DuplicateKey(Exception):
    pass


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKey
    return found


def _delimited_rows(path: Path, delimiter: str, columns: Sequence[str] | None, quoted: bool) -> Iterator[Row]:
    records = _delimited_records(path, delimiter, quoted)
    if columns is None:
        header_row, cells = next(records, (0, None))
        if cells is None:
            fail(path, None, "is empty; it needs a header and at least one record")
        # A header is the one row whose cells are stripped: "text, label" is how people write it.
        columns = [cell.strip() for cell in cells]
        _check_header(path, header_row, columns)
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


def _delimited_records(path: Path, delimiter: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    lines = read_lines(path)
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
