"""Text generation with a causal model, greedy or sampled, through transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from dpzo.errors import DpzoError
from dpzo.models.models import LoadedModel
from dpzo.models.quiet import global_generators_kept, silent_libraries

_BATCH = 16


def generate(
    loaded: LoadedModel,
    prompts: Sequence[str | list[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    stop: str | None = None,
    max_length: int | None = None,
) -> tuple[str, ...]:
    """The continuation of each of n prompts (texts, or their tokens), up to (and without) `stop` or the end token.

    - temperature 0: the likeliest token each time. Else: a token drawn with probability ∝ exp(logit / temperature), as
      the argmax of logit / temperature plus Gumbel noise from a generator of the prompt's own, made of the public
      `seed` and the prompt's place. The global generators are left alone, and another prompt changes no draw.
    - `max_length`: tokens of a prompt that are kept, cut on the left, the leading special token kept too; default: what
      the model can read less `max_new_tokens`.
    - The model's own generation settings (sampling, penalties, beams) are set aside. Padding on the left. Nothing is
      written to a disk, printed or logged.

    The answer to a private prompt is private. Errors: DpzoError for a model that is not causal, or a bad number.
    """
    if loaded.architecture != "causal":
        raise DpzoError("this model is a classifier: it generates no text; use a run of a causal model")
    if max_new_tokens < 1:
        raise DpzoError("--max-new-tokens: must be 1 or more")
    if not 0 <= temperature < float("inf"):
        raise DpzoError("--temperature: must be 0 (greedy) or a positive number")
    room = _room(loaded, max_new_tokens, max_length)
    said: list[str] = []
    with silent_libraries(), global_generators_kept(), torch.no_grad():
        for start in range(0, len(prompts), _BATCH):
            tokens = (_tokens(loaded, prompt) for prompt in prompts[start:][:_BATCH])
            block = [_cut(ids, loaded.tokenizer, room) for ids in tokens]
            drawn = None if temperature == 0 else _Gumbel(temperature, seed, start, len(block))
            said += _continue(loaded, block, max_new_tokens, drawn, stop)
    return tuple(said)


class _Gumbel:
    """logit / temperature + Gumbel noise, whose argmax is a draw from the softmax. Row i has a generator of its own."""

    def __init__(self, temperature: float, seed: int, first: int, count: int) -> None:
        self._temperature = temperature
        self._generators = [np.random.Generator(np.random.Philox([seed, first + row])) for row in range(count)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = np.stack([generator.gumbel(size=scores.shape[-1]) for generator in self._generators])
        return scores.float() / self._temperature + torch.from_numpy(noise).to(scores.device, torch.float32)


class _Stop:
    """Rows whose new text holds the stop string are done."""

    def __init__(self, tokenizer: Any, width: int, stop: str) -> None:
        self._tokenizer, self._width, self._stop = tokenizer, width, stop

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        texts = _decode(self._tokenizer, input_ids[:, self._width :])
        return torch.tensor([self._stop in text for text in texts], dtype=torch.bool, device=input_ids.device)


def _continue(
    loaded: LoadedModel, prompts: list[list[int]], max_new_tokens: int, drawn: _Gumbel | None, stop: str | None
) -> list[str]:
    tokenizer: Any = loaded.tokenizer
    module: Any = loaded.module
    # `generate` asks of processors and criteria only that they can be called.
    processors: Any = LogitsProcessorList([] if drawn is None else [drawn])
    width = max(map(len, prompts))
    criteria: Any = StoppingCriteriaList([] if stop is None else [_Stop(tokenizer, width, stop)])
    tokens = torch.full((len(prompts), width), int(tokenizer.pad_token_id), dtype=torch.long)
    seen = torch.zeros_like(tokens)
    for row, ids in enumerate(prompts):
        tokens[row, width - len(ids) :] = torch.tensor(ids)
        seen[row, width - len(ids) :] = 1
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module
    own = inner.generation_config
    make: Any = GenerationConfig
    settings = make(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=int(tokenizer.pad_token_id),
        eos_token_id=own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id,
        bos_token_id=own.bos_token_id,
    )
    # The library fills what a given configuration leaves open from the model's own, so that one steps aside.
    inner.generation_config = settings
    try:
        found = module.generate(
            input_ids=tokens.to(loaded.device),
            attention_mask=seen.to(loaded.device),
            generation_config=settings,
            logits_processor=processors,
            stopping_criteria=criteria,
        )
    finally:
        inner.generation_config = own
    texts = _decode(tokenizer, found[:, width:])
    return [text if stop is None else text.partition(stop)[0] for text in texts]


def _decode(tokenizer: Any, tokens: Tensor) -> list[str]:
    # Clean-up would drop spaces before punctuation that the model did say.
    found: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return found


def chat_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[str | list[int]]:
    """Tokens of each prompt as the user's turn, up to where the assistant's answer begins, by the chat template."""
    try:
        with silent_libraries():
            texts = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
                )
                for prompt in prompts
            ]
            return [list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]
    except Exception as error:  # its message may quote a prompt
        raise DpzoError(
            f"--prompt: the model's chat template cannot render it as a user's turn ({type(error).__name__})"
        ) from None


def _tokens(loaded: LoadedModel, text: str | list[int]) -> list[int]:
    """A prompt's tokens without the end token that some tokenizers append, so that the model continues the text."""
    tokenizer, known = loaded.tokenizer, loaded.vocabulary
    if not isinstance(text, str):
        return text
    try:
        ids = list(tokenizer(text.encode("utf-8", "replace").decode("utf-8"), verbose=False)["input_ids"])
    except Exception as error:  # its message may quote a record
        raise DpzoError(f"the model's tokenizer failed on a prompt ({type(error).__name__})") from None
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id != tokenizer.bos_token_id:
        ids.pop()
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    ids = ids or [next(token for token in marks if token is not None)]
    return [token if token < known else loaded.stand_in_token for token in ids]


def _cut(ids: list[int], tokenizer: Any, room: int) -> list[int]:
    if len(ids) <= room:
        return ids
    lead = ids[:1] if ids[0] == tokenizer.bos_token_id and room > 1 else []
    return [*lead, *ids[len(ids) - room + len(lead) :]]


def _room(loaded: LoadedModel, max_new_tokens: int, max_length: int | None) -> int:
    module: Any = loaded.module
    positions = getattr(module.config, "max_position_embeddings", None)
    most = positions - max_new_tokens if isinstance(positions, int) else None
    if most is not None and most < 1:
        raise DpzoError(f"--max-new-tokens {max_new_tokens}: the model reads {positions} tokens in all; ask for fewer")
    bounds = [bound for bound in (most, max_length) if bound is not None]
    return min(bounds) if bounds else 1024
