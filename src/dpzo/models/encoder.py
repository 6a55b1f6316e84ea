"""A bare encoder with a linear head: mean pooling, unit length, one matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NORM_FLOOR = 1e-12
"""Smallest length by which a pooled vector is divided; only an all-zero vector ever meets it."""


def pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean of the token vectors that are not padding, scaled to unit length.

    f = m / max(‖m‖₂, 1e-12),  m = Σ_t a_t h_t / max(Σ_t a_t, 1)

    Shapes: hidden (B, L, D), attention_mask (B, L) of 0 and 1; result (B, D) in fp32. A row depends on its own tokens
    alone. Padding vectors are dropped, not multiplied by zero, so that a NaN there stays there.
    """
    mask = attention_mask.unsqueeze(-1) > 0
    kept = torch.where(mask, hidden.float(), torch.zeros((), device=hidden.device))
    mean: Tensor = kept.sum(dim=1) / attention_mask.sum(dim=1, keepdim=True).clamp(min=1).float()
    length: Tensor = torch.linalg.vector_norm(mean, dim=-1, keepdim=True)
    return mean / length.clamp(min=NORM_FLOOR)


class EncoderClassifier(nn.Module):
    """Encoder → `pool` → linear head; logits (B, num_labels) in fp32.

    The head starts at zero. With a frozen encoder the loss is convex in the head, so no start is better placed than
    the one that treats all classes alike; and a random start would only add logits that the noisy steps must first
    remove. Symmetry is no obstacle, as each class has its own row and its own gradient.
    """

    def __init__(self, encoder: nn.Module, hidden_size: int, num_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        # Built on meta and filled by hand: nn.Linear would draw its start from the global generator.
        self.head = nn.Linear(hidden_size, num_labels, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.zero_()

    def features(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
        """Pooled unit vectors, shape (B, D), fp32; they do not depend on the head."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        return pool(hidden, attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
        """Logits, shape (B, num_labels), fp32."""
        logits: Tensor = self.head(self.features(input_ids, attention_mask, **inputs))
        return logits
