"""The directive `options`: a table of one config group, made from `dpzo.config.schema` when the site is built."""

from __future__ import annotations

import types
import typing
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive
from pydantic import BaseModel
from sphinx.application import Sphinx

from dpzo.config import schema

COLUMNS = {"field": 24, "type": 20, "default": 18, "flag": 18, "meaning": 40}


def spelled(annotation: Any) -> str:
    """A type for a reader: `number`, `whole number`, `text`, or the choices."""
    origin, of = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return spelled(of[0])
    if origin is typing.Literal:
        return ", ".join(map(str, of))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(spelled(part) for part in of if part is not type(None)))
    if origin in (tuple, list):
        return f"list of {spelled(of[0])}"
    if origin is dict:
        return "mapping"
    return {float: "number", int: "whole number", str: "text", bool: "true or false"}.get(annotation, str(annotation))


def rows(group: str) -> list[dict[str, str]]:
    """The fields of a group, as the columns of its table."""
    model = schema.RunConfig.model_fields[group].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    known = {option.field: option for option in schema.options()}
    found = []
    for name, info in model.model_fields.items():
        option = known[f"{group}.{name}"]
        found.append(
            {
                "field": name,
                "type": spelled(info.annotation),
                "default": "required" if info.is_required() else option.default or "none",
                "flag": option.flag or "",
                "meaning": option.help,
            }
        )
    return found


class Options(Directive):
    """`options` GROUP: the group's table."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """The table's nodes."""
        group = nodes.tgroup(cols=len(COLUMNS))
        group += [nodes.colspec(colwidth=width) for width in COLUMNS.values()]
        head = nodes.thead()
        head += self.row({name: name for name in COLUMNS}, code=())
        body = nodes.tbody()
        body += [self.row(row, code=("field", "flag")) for row in rows(self.arguments[0])]
        group += [head, body]
        table = nodes.table()
        table += group
        return [table]

    def row(self, cells: dict[str, str], code: tuple[str, ...]) -> nodes.row:
        """One line; the columns in `code` are set as code."""
        row = nodes.row()
        for name, text in cells.items():
            entry, words = nodes.entry(), nodes.paragraph()
            if text:
                words += nodes.literal(text, text) if name in code else nodes.Text(text)
            entry += words
            row += entry
        return row


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("options", Options)
    return {"parallel_read_safe": True}
