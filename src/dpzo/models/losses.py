"""Per-example losses: one number a record, in fp32, never a mean over the batch."""

from __future__ import annotations

import torch
from torch import Tensor


def class_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """ℓ_i = log Σ_c exp(x_ic) − x_{i, y_i}.

    Shapes: logits (B, C) of any float type, targets (B,) int64; result (B,) fp32, in nats. Row i is a function of row
    i alone. NaN and ±inf pass through: the private channel counts such rows as zero.
    """
    scores = logits.float()
    chosen = scores.gather(-1, targets[:, None]).squeeze(-1)
    return torch.logsumexp(scores, dim=-1) - chosen


def answer_log_probs(logits: Tensor, input_ids: Tensor, answer_lengths: Tensor) -> Tensor:
    """log p(token | everything before it) for the last A columns; 0 in columns that are not of the answer.

    Shapes: logits (B, A + 1, V) for the last A + 1 columns of a left-padded batch, input_ids (B, L), answer_lengths
    (B,) each ≤ A; result (B, A) fp32. The logits at column j score the token in column j + 1, so the very last ones
    score nothing and are dropped.
    """
    width = logits.shape[1] - 1
    scores = logits[:, :-1, :].float()
    tokens = input_ids[:, -width:]
    chosen = scores.gather(-1, tokens[..., None]).squeeze(-1) - torch.logsumexp(scores, dim=-1)
    columns = torch.arange(width, device=logits.device)
    scored = columns >= width - answer_lengths[:, None]
    return torch.where(scored, chosen, torch.zeros((), device=logits.device))


def mean_answer_log_prob(logits: Tensor, input_ids: Tensor, answer_lengths: Tensor) -> Tensor:
    """Mean of `answer_log_probs` over the record's own answer tokens; 0 for a row without an answer.

    Shapes as there; result (B,) float64, whose terms are fp32: no record is weighed by another one's length.
    """
    total = answer_log_probs(logits, input_ids, answer_lengths).double().sum(dim=1)
    return total / answer_lengths.clamp(min=1).double()


def mean_scored_log_prob(logits: Tensor, input_ids: Tensor, scored: Tensor) -> Tensor:
    """(1/n_i) Σ log p(token | everything before it) over the n_i flagged tokens of row i; 0 for a row without one.

    Shapes: logits (B, A + 1, V) and input_ids (B, L) as in `answer_log_probs`, scored (B, A) bool over the last A
    columns; result (B,) float64, whose terms are fp32. A token without a flag adds nothing, whatever its probability.
    """
    every = torch.full_like(scored[:, 0], scored.shape[1], dtype=torch.int64)
    terms = answer_log_probs(logits, input_ids, every).double()
    total = torch.where(scored, terms, torch.zeros((), dtype=terms.dtype, device=terms.device)).sum(dim=1)
    return total / scored.sum(dim=1).clamp(min=1).double()
