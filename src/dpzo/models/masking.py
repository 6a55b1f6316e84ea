"""Prompts for masked language models: the template around a record's texts, and one token a label at the mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpzo.errors import DpzoError
from dpzo.models.batching import Encoded
from dpzo.models.quiet import silent_libraries

MASK = "mask"
"""Name of the template's field where the label word stands."""
_CHUNK = 1024


def template_pieces(template: str) -> list[tuple[str, str | None]]:
    """(literal text, field after it or None) pairs of a template that holds `{mask}` once and a text at least once.

    Errors: `DpzoError` names what the template lacks.
    """
    try:
        pieces = [(text, field) for text, field, _, _ in Formatter().parse(template)]
    except ValueError:
        raise DpzoError("mask_template: braces do not match; write a brace of the text as {{ or }}") from None
    names = [field for _, field in pieces if field is not None]
    if names.count(MASK) != 1:
        raise DpzoError("mask_template: it must hold {mask} once, where the label word belongs")
    if len(names) < 2:
        raise DpzoError("mask_template: it names no field beside {mask}; write {text} where the text belongs")
    return pieces


def word_tokens(tokenizer: Any, template: str, label_words: Sequence[str]) -> tuple[int, ...]:
    """The one token of each label word where the template has its mask.

    A word that does not begin with a space gets one when the template has a space before `{mask}`: the word is
    tokenised as it would stand there. Errors: `DpzoError` for a word of several tokens, an unknown one, or two labels
    with the same token. Words and template are public, so the message may show them.
    """
    if getattr(tokenizer, "mask_token_id", None) is None:
        raise DpzoError("--model: its tokenizer has no mask token; use a masked language model")
    pieces = template_pieces(template)
    before = next(text for text, field in pieces if field == MASK)
    found = []
    for word in label_words:
        spelled = f" {word.strip()}" if word.startswith(" ") or before[-1:].isspace() else word
        with silent_libraries():
            ids = tokenizer(spelled, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) != 1:
            raise DpzoError(
                f"--label-words: {spelled!r} is a label word of several tokens ({len(ids)}) for this model; "
                "a masked model needs one token a word, so choose another word (mind its leading space)"
            )
        if ids[0] == tokenizer.unk_token_id or ids[0] in tokenizer.all_special_ids:
            raise DpzoError(f"--label-words: {spelled!r} is not a word of this model's vocabulary; choose another word")
        found.append(int(ids[0]))
    if len(found) < 2 or len(set(found)) != len(found):
        raise DpzoError("--label-words: two labels share a token, or there is only one; give each label its own word")
    return tuple(found)


def encode_masked(
    tokenizer: Any,
    template: str,
    fields: Mapping[str, Sequence[str]],
    label_words: Sequence[str],
    targets: Sequence[int] | NDArray[np.int64],
    *,
    max_length: int,
) -> Encoded:
    """Every record's texts in the template, with the mask token where the label word belongs; padding on the right.

    A row of more than max_length − 1 tokens loses the last tokens of its longest text, one by one: the template and
    the mask stay. A mask token that a record's own text spells is no mask: the template's is known by its place. A
    record all of whose texts are blank is flagged as empty. Errors: `DpzoError` for what `word_tokens` refuses, for a
    field that the records lack, and for a template that does not fit `max_length`.
    """
    pieces = template_pieces(template)
    words = word_tokens(tokenizer, template, label_words)
    if not tokenizer.is_fast:
        raise DpzoError("--model: its tokenizer tells no positions; a masked prompt needs a fast tokenizer")
    names = [field for _, field in pieces if field is not None and field != MASK]
    lacking = next((name for name in names if name not in fields), None)
    if lacking is not None:
        raise DpzoError(f"mask_template: the records have no field {{{lacking}}}; they have {', '.join(fields)}")
    with silent_libraries():
        alone = tokenizer(_render(pieces, dict.fromkeys(names, ""), tokenizer.mask_token)[0], verbose=False)
    if len(alone["input_ids"]) + len(set(names)) > max_length - 1:
        raise DpzoError(f"--max-length {max_length}: too short, the template alone takes {len(alone['input_ids'])}")
    count = len(fields[names[0]])
    tokens = np.full((count, max_length), tokenizer.pad_token_id, dtype=np.int32)
    lengths, places = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.int32)
    empty = np.zeros(count, dtype=np.bool_)
    with silent_libraries():
        for start in range(0, count, _CHUNK):
            texts = [
                {name: fields[name][row].encode("utf-8", "replace").decode("utf-8") for name in names}
                for row in range(start, min(start + _CHUNK, count))
            ]
            rendered = [_render(pieces, text, tokenizer.mask_token) for text in texts]
            found = _tokenise(tokenizer, [text for text, _, _ in rendered])
            for row, (_, mask_at, spans) in enumerate(rendered, start):
                place = row - start
                ids, mask = _fit(
                    found["input_ids"][place],
                    found["offset_mapping"][place],
                    found["special_tokens_mask"][place],
                    mask_at,
                    spans,
                    tokenizer.mask_token_id,
                    max_length - 1,
                )
                tokens[row, : len(ids)] = ids
                lengths[row], places[row] = len(ids), mask
                empty[row] = not any(text.strip() for text in texts[place].values())
    return Encoded(
        form="mask",
        tokens=tokens,
        token_types=None,
        lengths=lengths,
        answer_lengths=np.zeros(count, dtype=np.int32),
        targets=np.asarray(targets, dtype=np.int64).reshape(count),
        empty=empty,
        options=1,
        max_answer_tokens=0,
        left_padded=False,
        pad_token_id=int(tokenizer.pad_token_id),
        mask_positions=places,
        word_ids=words,
    )


Span = tuple[int, int]


def _render(pieces: list[tuple[str, str | None]], texts: Mapping[str, str], mask: str) -> tuple[str, int, list[Span]]:
    """The prompt, the character where its mask begins, and the characters that each text takes."""
    prompt, mask_at, spans = "", 0, []
    for literal, field in pieces:
        prompt += literal
        if field == MASK:
            mask_at = len(prompt)
            prompt += mask
        elif field is not None:
            spans.append((len(prompt), len(prompt) + len(texts[field])))
            prompt += texts[field]
    return prompt, mask_at, spans


def _fit(
    ids: list[int],
    offsets: list[Span],
    special: list[int],
    mask_at: int,
    spans: list[Span],
    mask_token: int,
    room: int,
) -> tuple[list[int], int]:
    """At most `room` tokens, and the mask's place among them."""
    # A mask token may swallow the space before it, so it begins at the template's place or earlier.
    mask = next(i for i, (a, b) in enumerate(offsets) if ids[i] == mask_token and a <= mask_at < b)
    if len(ids) <= room:
        return ids, mask
    owned: list[list[int]] = [[] for _ in spans]
    for i, (a, b) in enumerate(offsets):
        if i == mask or (special[i] and a == b):
            continue
        owner = next((n for n, (first, last) in enumerate(spans) if first <= a and b <= last and a < b), None)
        if owner is not None:
            owned[owner].append(i)
    dropped: set[int] = set()
    while len(ids) - len(dropped) > room and any(owned):
        dropped.add(max(owned, key=len).pop())
    # What straddles a border belongs to no text; where many do, the tokens farthest from the mask go.
    rest = sorted((i for i in range(len(ids)) if i not in dropped and i != mask), key=lambda i: abs(i - mask))
    while len(ids) - len(dropped) > room:
        dropped.add(rest.pop())
    kept = [i for i in range(len(ids)) if i not in dropped]
    return [ids[i] for i in kept], kept.index(mask)


def _tokenise(tokenizer: Any, prompts: list[str]) -> Any:
    try:
        return tokenizer(prompts, verbose=False, return_offsets_mapping=True, return_special_tokens_mask=True)
    except Exception as error:  # its message may quote a record
        raise DpzoError(
            f"the model's tokenizer failed on the data ({type(error).__name__}); try a fast tokenizer"
        ) from None
