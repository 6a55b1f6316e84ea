"""Prompt templates: a text with named fields in braces, each with filters if need be: `{premise|drop_last}?`.

A template is data that a user may write, so it can do nothing but put texts in: no attribute, no index, no code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from string import Formatter

from dpzo.data.tasks.records import COMPLETION
from dpzo.errors import DpzoError

MASK = "mask"
"""The field of a masked-LM template at which the model answers."""


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _question(text: str) -> str:
    return text if text.endswith("?") else text + "?"


FILTERS: Mapping[str, Callable[[str], str]] = {
    "drop_last": lambda text: text[:-1],
    "drop_stop": lambda text: text.removesuffix("."),
    "lower": str.lower,
    "lower_first": _lower_first,
    "upper_first": _upper_first,
    "question": _question,
}
"""What may be done to a text on its way into a template. Pure functions, defined for every string."""


def fields_of(template: str, what: str = "template") -> tuple[str, ...]:
    """Names of a template's fields, each once, in their order. Only plain names with known filters.

    Errors: DpzoError for braces that do not match, a field that is not a plain name, an unknown filter, no field.
    """
    names = names_in(template, what)
    if not names:
        raise DpzoError(f"{what}: it names no field; write {{text}} where the text belongs")
    return names


def names_in(template: str, what: str = "template") -> tuple[str, ...]:
    """As `fields_of`, of a part of a template, which may name none."""
    return tuple(dict.fromkeys(slot.partition("|")[0] for slot in slots_in(template, what)))


def render(template: str, columns: Mapping[str, Sequence[str]], count: int) -> tuple[str, ...]:
    """The template with record i's texts put in, for i < count. Braces within a text are left as they are."""
    slots = slots_in(template, "answer_template")  # it was checked as what it is; here every field is welcome
    made = {slot: [_filtered(slot, text) for text in columns[slot.partition("|")[0]]] for slot in slots}
    return tuple(template.format_map({slot: texts[i] for slot, texts in made.items()}) for i in range(count))


def _filtered(slot: str, text: str) -> str:
    for name in slot.split("|")[1:]:
        text = FILTERS[name](text)
    return text


def slots_in(template: str, what: str = "template") -> tuple[str, ...]:
    """The contents of the braces, including filters, each once."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        raise DpzoError(f"{what}: braces do not match; write a brace of the text as {{{{ or }}}}") from None
    slots: list[str] = []
    for _, slot, spec, conversion in parts:
        if slot is None:
            continue
        name, *filters = slot.split("|")
        if not name.isidentifier() or spec or conversion:
            raise DpzoError(f"{what}: a field must be a plain name in braces, such as {{text}}")
        if name == COMPLETION and what != "answer_template":
            raise DpzoError(f"{what}: {{completion}} is the answer and cannot be part of the prompt")
        for filter_name in filters:
            if filter_name not in FILTERS:
                raise DpzoError(f"{what}: {{{name}|…}} names an unknown filter; there are {', '.join(FILTERS)}")
        slots.append(slot)
    return tuple(dict.fromkeys(slots))
