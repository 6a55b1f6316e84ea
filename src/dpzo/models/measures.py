"""Losses of a record's logits, or scores without a gradient. One number per record, smaller is better.

Zeroth-order steps only need values, so 1 − accuracy or 1 − F1 can be used like cross-entropy. Each is bounded in
[0, 1], a step function of the weights, and of a record alone. A slope is a multiple of 1/(2·smoothing), mostly 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dpzo.errors import DpzoError
from dpzo.models.batching import Form
from dpzo.models.losses import class_cross_entropy, mean_answer_log_prob

Measure = Literal["loss", "accuracy", "f1"]
MEASURES: tuple[Measure, ...] = ("loss", "accuracy", "f1")


def check_measure(measure: str, form: Form) -> Measure:
    """The measure of that name, if it is defined for records of this form. Errors: `DpzoError`."""
    for known in MEASURES:
        if known == measure:
            if known == "f1" and form != "completion":
                raise DpzoError("--objective f1: is for completion tasks; a class is right or wrong, so use accuracy")
            return known
    raise DpzoError(f"--objective {measure}: unknown; choose one of {', '.join(MEASURES)}")


def class_measure(measure: Measure, scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the scores, or 1 − [argmax = target].

    Shapes: scores (B, C), targets (B,) int64; result (B,) fp32. Of equal scores the lowest class counts. Scores that
    are not finite make the record's value NaN.
    """
    if measure == "loss":
        return class_cross_entropy(scores, targets)
    wrong = (scores.argmax(dim=-1) != targets).float()
    return torch.where(torch.isfinite(scores).all(dim=-1), wrong, torch.full_like(wrong, torch.nan))


def answer_measure(measure: Measure, logits: Tensor, input_ids: Tensor, answer_lengths: Tensor) -> Tensor:
    """1 − accuracy or 1 − F1 of the tokens that the model would have chosen in place of the answer's own.

    Both look at ŷ_j = argmax p(· | prompt, y_<j): every token is chosen after the *true* beginning of the answer
    (teacher forcing), as no text is generated. accuracy = share of j with ŷ_j = y_j. F1 = 2·c/(n + n) = c/n with c
    the size of the multiset intersection of ŷ and y, both of n tokens: order does not count.

    Shapes as `answer_log_probs`; result (B,) fp32, 0 for a row without an answer, NaN where its logits are not finite.
    """
    if measure == "loss":
        return -mean_answer_log_prob(logits, input_ids, answer_lengths)
    width = logits.shape[1] - 1
    scores, truth = logits[:, :-1, :].float(), input_ids[:, -width:]
    guess = scores.argmax(dim=-1)
    scored = torch.arange(width, device=logits.device) >= width - answer_lengths[:, None]
    count = answer_lengths.clamp(min=1).float()
    right = (guess == truth) & scored if measure == "accuracy" else _matched(guess, truth, scored)
    value = torch.where(answer_lengths > 0, 1.0 - right.sum(dim=1).float() / count, torch.zeros_like(count))
    sound = (torch.isfinite(scores).all(dim=-1) | ~scored).all(dim=1)
    return torch.where(sound, value, torch.full_like(value, torch.nan))


def _matched(guess: Tensor, truth: Tensor, scored: Tensor) -> Tensor:
    """(B, A) flags of answer tokens matched one to one with guesses: Σ = multiset intersection.

    The r-th occurrence of a token in the answer is matched if the guesses hold that token at least r times.
    """
    both = scored[:, :, None] & scored[:, None, :]
    earlier = torch.ones(both.shape[1:], dtype=torch.bool, device=guess.device).tril()
    rank = ((truth[:, :, None] == truth[:, None, :]) & both & earlier).sum(dim=2)
    held = ((truth[:, :, None] == guess[:, None, :]) & both).sum(dim=2)
    return scored & (held >= rank)
