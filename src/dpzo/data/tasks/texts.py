"""BLEU, ROUGE-L and NIST of generated texts, through sacrebleu, rouge-score and nltk (the extra `eval`).

METEOR is not here: every kept implementation needs WordNet, which no package carries and which would be downloaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpzo.errors import DpzoError

Rows = NDArray[np.float64]
_ORDERS = 4


def bleu_rows(answers: Sequence[str], golds: Sequence[Sequence[str]]) -> Rows:
    """BLEU's statistics: for each text, matches and totals of 1- to 4-grams, its length, the reference length; (n, 10).

    sacrebleu's tokens (13a, cased) and its closest reference length.
    """
    metric = _package("sacrebleu.metrics").BLEU(effective_order=True)
    rows = np.zeros((len(answers), 2 * _ORDERS + 2))
    for row, answer, gold in zip(rows, answers, golds, strict=True):
        found = metric.sentence_score(answer, list(gold))
        row[:] = [*found.counts, *found.totals, found.sys_len, found.ref_len]
    return rows


def bleu_of(total: Rows) -> float:
    """Corpus BLEU in [0, 1] from the sum of `bleu_rows`; sacrebleu's exponential smoothing of zero counts."""
    counts = [int(value) for value in total]
    return (
        float(
            _package("sacrebleu.metrics")
            .BLEU.compute_bleu(
                counts[:_ORDERS], counts[_ORDERS : 2 * _ORDERS], counts[-2], counts[-1], smooth_method="exp"
            )
            .score
        )
        / 100
    )


def rouge_l(answers: Sequence[str], golds: Sequence[Sequence[str]]) -> Rows:
    """F measure of the longest common subsequence of tokens, no stemming, best gold; (n,) in [0, 1].

    The E2E challenge's script weighs recall more (β = 1.2), so its figure is another one.
    """
    scorer = _package("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    scored = (scorer.score_multi(list(gold), answer)["rougeL"] for answer, gold in zip(answers, golds, strict=True))
    return np.array([score.fmeasure for score in scored], dtype=np.float64)


def nist(answers: Sequence[str], golds: Sequence[Sequence[str]], order: int = 5) -> float:
    """Corpus NIST of 1- to 5-grams over tokens apart by spaces; 0 where it is not defined (no common word).

    Not a sum over records, for its weights come from all references: it has no bootstrap here.
    """
    corpus_nist = _package("nltk.translate.nist_score").corpus_nist
    references = [[gold.split() for gold in texts] for texts in golds]
    try:
        return float(corpus_nist(references, [answer.split() for answer in answers], n=order))
    except (ZeroDivisionError, ValueError):
        return 0.0


def meteor(answers: Sequence[str], golds: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """METEOR of each record, (n,), by exact words and stems; the best of its golds, 0 for an empty answer.

    Without its third stage, synonyms: these need WordNet, which is a download. So it is at most the usual score, and is
    reported under a name that says so. Source: Banerjee and Lavie 2005, as nltk computes it.
    """
    score = _package("nltk.translate.meteor_score").meteor_score

    def one(answer: str, texts: Sequence[str]) -> float:
        words = answer.split()
        return float(score([text.split() for text in texts], words, wordnet=_NoSynonyms())) if words else 0.0

    return np.array([one(answer, texts) for answer, texts in zip(answers, golds, strict=True)], dtype=np.float64)


class _NoSynonyms:
    """Stands in for WordNet: no word has a synonym."""

    def synsets(self, _word: str) -> list[Any]:
        return []


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        root = {"rouge_score": "rouge-score"}.get(name.partition(".")[0], name.partition(".")[0])
        raise DpzoError(f"this metric needs the package {root}: pip install 'dpzo[eval]'") from None
