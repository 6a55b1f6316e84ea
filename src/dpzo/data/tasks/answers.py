"""How far a text is from the accepted answers: exact match and token F1 as SQuAD and DROP define them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = frozenset(string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, without the articles, white space made single. Source: SQuAD 1.1."""
    bare = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """1 if the normalised answer equals a normalised gold, else 0. ValueError for no gold."""
    return max(float(normalised(answer) == normalised(gold)) for gold in golds)


def squad_f1(answer: str, golds: Sequence[str]) -> float:
    """max over golds of 2PR/(P + R), P and R the shares of common tokens (as bags) in answer and gold.

    0 where no token is common, also for two empty texts: the published script has it so. ValueError for no gold.
    """
    return max(_bag_f1(normalised(answer).split(), normalised(gold).split()) for gold in golds)


def drop_f1(answer: str, golds: Sequence[str]) -> float:
    """DROP's F1 of an answer in one span: max over golds of the F1 of token sets, 0 where its numbers are missed.

    - A token is split at spaces and hyphens, lower-cased, without articles and ASCII punctuation; a token that reads as
      a number is that number (`6.0` = `6`) and keeps its point.
    - Sets and not bags; two texts without a token agree fully; a gold with numbers that shares none with the answer
      scores 0; the result is rounded to 2 decimals. A gold of several spans counts as one text with its spans joined.

    Source: Dua et al. 2019 and its public scorer. ValueError for no gold.
    """
    return max(_set_f1(_drop_tokens(answer), _drop_tokens(gold)) for gold in golds)


def drop_exact_match(answer: str, golds: Sequence[str]) -> float:
    """1 if the answer equals a gold after DROP's normalisation, else 0. ValueError for no gold."""
    return max(float(" ".join(_drop_words(answer)) == " ".join(_drop_words(gold))) for gold in golds)


def _bag_f1(answer: Sequence[str], gold: Sequence[str]) -> float:
    common = sum((Counter(answer) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(answer), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def _set_f1(answer: frozenset[str], gold: frozenset[str]) -> float:
    numbers = {token for token in gold if _is_number(token)}
    if numbers and not numbers & {token for token in answer if _is_number(token)}:
        return 0.0
    common = len(answer & gold)
    precision = common / len(answer) if answer else 1.0
    recall = common / len(gold) if gold else 1.0
    return 0.0 if precision + recall == 0 else round(2 * precision * recall / (precision + recall), 2)


def _drop_tokens(text: str) -> frozenset[str]:
    return frozenset(_drop_words(text))


def _drop_words(text: str) -> list[str]:
    words = []
    for part in re.split("[ -]", text):
        lower = part.lower()
        bare = lower if _is_number(lower) else "".join(c for c in lower if c not in _PUNCTUATION)
        number = str(float(bare)) if _is_number(bare) else bare
        words.extend(_ARTICLES.sub(" ", number).split())
    return words


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
