"""Virtual tokens before a prompt: a learned prefix of keys and values, or learned embeddings.

PEFT's own wrapper drops position numbers, so a record's answers would depend on its left padding. Here the base model
is called with the position numbers of an unpadded PEFT call: virtual tokens first, then the record's own tokens without
a gap.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class VirtualPrompt:
    """The virtual tokens before every row of a PEFT model that learns a prompt, and the base model that reads them."""

    peft: Any
    model: nn.Module
    count: int  # virtual tokens
    is_prefix: bool  # keys and values, not embeddings

    def before(self, inputs: dict[str, Any], accepted: Collection[str]) -> dict[str, Any]:
        """The base model's inputs with the virtual tokens in front; shapes (B, V + L) where both count.

        A row's result depends on the virtual tokens and on that row alone.
        """
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        rows = len(ids)
        extended = dict(inputs)
        extended["attention_mask"] = torch.cat((mask.new_ones((rows, self.count)), mask), dim=1)
        if "position_ids" in accepted:
            positions = inputs["position_ids"] + self.count
            if not self.is_prefix:
                own = torch.arange(self.count, dtype=positions.dtype, device=positions.device).expand(rows, -1)
                positions = torch.cat((own, positions), dim=1)
            extended["position_ids"] = positions
        if self.is_prefix:
            extended["past_key_values"] = self.peft.get_prompt(rows)
            extended["use_cache"] = True  # some families only read a cache that they may also write
            return extended
        embedded: Tensor = self.peft.get_base_model().get_input_embeddings()(extended.pop("input_ids"))
        prompts: Tensor = self.peft.get_prompt(rows).to(embedded.dtype)
        extended["inputs_embeds"] = torch.cat((prompts, embedded), dim=1)
        return extended


def virtual_prompt(module: nn.Module) -> VirtualPrompt | None:
    """The virtual prompt of a PEFT model, or None for any other module."""
    peft: Any = module
    config = getattr(peft, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return None
    return VirtualPrompt(peft, peft.get_base_model(), config.num_virtual_tokens, config.peft_type == "PREFIX_TUNING")


def unwrapped(module: nn.Module) -> nn.Module:
    """The model under PEFT's wrapper, whose signature tells which inputs it takes."""
    inner: Any = module
    while hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    result: nn.Module = inner
    return result
