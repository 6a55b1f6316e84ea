"""A model's score on records: the task's metric with a bootstrap interval, on labels, losses or generated texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dpzo.data.tasks import Records
from dpzo.data.tasks.answers import drop_exact_match, exact_match
from dpzo.data.tasks.tallies import Tally, interval, tally_answers, tally_labels, tally_losses
from dpzo.data.tasks.texts import meteor, nist
from dpzo.errors import DpzoError
from dpzo.models import FeatureObjective, TokenObjective, make_objective
from dpzo.models.generation import generate
from dpzo.run.subject import Subject, encode

Seen = TokenObjective | FeatureObjective
BOOTSTRAP_SEED = 0
"""A public constant, so that two evaluations of one model give the same interval."""


def score(subject: Subject, records: Records) -> dict[str, Any]:
    """The task's metric at the model's current weights: metric, value, its 95 % interval, and further metrics.

    `{"metric": name, "value": number, "interval": [low, high], "others": {name: number}}`. The interval is a percentile
    bootstrap over units, 1000 resamples with a public seed; Clopper–Pearson's where none or all of them err. It reads
    labels and texts: on private records no ε covers it. Errors: DpzoError for no record, or a metric whose package is
    not installed.
    """
    if len(records) == 0:
        raise DpzoError("--data: there is no record to evaluate on")
    return judge(subject, records)()


def judge(subject: Subject, records: Records, seen: Seen | None = None) -> Callable[[], dict[str, Any]]:
    """Prepare `score` once (caching the features of a frozen encoder), to call it again after each weight change.

    `seen`: records already encoded by the subject's module, to evaluate many models on the same records.
    """
    task = subject.task
    if seen is None:
        seen = make_objective(subject.loaded, encode(records, subject), subject.shapes)
    everything = np.arange(len(records), dtype=np.int64)

    def score_now() -> dict[str, Any]:
        others: dict[str, float] = {}
        if task.kind != "completion":
            assert task.labels is not None
            assert records.labels is not None
            predictions = seen.predict(everything)
            tally = tally_labels(task.metric, predictions, records.labels, len(task.labels))
            if task.metric != "accuracy":
                others["accuracy"] = tally_labels("accuracy", predictions, records.labels, len(task.labels)).value()
        else:
            tally = tally_losses(np.asarray(seen.losses(everything), dtype=np.float64))
            if task.metric != "loss":
                others["loss"] = tally.value()
                tally, more = _said(subject, records)
                others |= more
        low, high = interval(tally, units=records.units, seed=BOOTSTRAP_SEED)
        return {"metric": task.metric, "value": tally.value(), "interval": [low, high], "others": others}

    return score_now


def _said(subject: Subject, records: Records) -> tuple[Tally, dict[str, float]]:
    """Greedy answers to every prompt, scored against all accepted answers."""
    task, data = subject.task, subject.config.data
    answers = [
        text.strip()
        for text in generate(
            subject.loaded,
            task.prompts(records),
            max_new_tokens=task.max_new_tokens,
            stop=task.stop,
            max_length=max(1, data.max_length - 1 - data.max_answer_tokens),
        )
    ]
    golds = records.accepted
    tally = tally_answers(task.metric, answers, golds)
    if task.metric == "squad_f1":
        return tally, {"exact_match": _mean(exact_match(a, g) for a, g in zip(answers, golds, strict=True))}
    if task.metric == "drop_f1":
        return tally, {"exact_match": _mean(drop_exact_match(a, g) for a, g in zip(answers, golds, strict=True))}
    other = "rouge_l" if task.metric == "bleu" else "bleu"
    return tally, {
        other: tally_answers(other, answers, golds).value(),
        "nist": nist(answers, golds),
        "meteor_without_synonyms": _mean(meteor(answers, golds)),
    }


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
