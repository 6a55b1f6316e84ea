"""How the base weights are stored: in 32 or 16 bits, or quantised to 8 or 4.

Zeroth-order steps need no gradient of the base, so adapters can be trained on any base that has a forward pass.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.models.quiet import silent_libraries

Dtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "int4", "bnb-int8", "bnb-nf4"]

_DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_GROUPS = (64, 32)
"""Inputs that share an int4 scale; the first that divides a layer's width."""
_INT4_ROWS = 16
"""The CPU's int4 product takes outputs by this many."""


@dataclass(frozen=True)
class Storage:
    """`dtype` of all weights that are not quantised; `quantization` of the linear layers but the output layer.

    - `int8`: one scale an output, `int4`: one scale and zero for 32 or 64 inputs of an output (a layer whose shape
      does not fit is int8), both by torchao, weight-only: activations keep `dtype`, but bf16 inside an int4 layer.
    - `bnb-int8`, `bnb-nf4`: bitsandbytes, where it is installed and supports the device.
    """

    dtype: Dtype = "float32"
    quantization: Quantization = "none"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it."""
        return _DTYPES[self.dtype]

    def loader_options(self, device: str | torch.device) -> dict[str, Any]:
        """Arguments of `from_pretrained`. Errors: `DpzoError` if a package is missing, with the fix."""
        options: dict[str, Any] = {"dtype": self.torch_dtype}
        if self.quantization in ("int8", "int4"):
            _require("torchao", self.quantization, "quant")
        if self.quantization.startswith("bnb"):
            _require("bitsandbytes", self.quantization, "quant-gpu")
            options["quantization_config"] = _bitsandbytes(self)
            options["device_map"] = {"": str(device)}
        return options

    def describe(self) -> str:
        """The base fingerprint's entry for quantised weights: they are a function of the checkpoint and of this."""
        if self.quantization == "none":
            return ""
        package = "bitsandbytes" if self.quantization.startswith("bnb") else "torchao"
        return f"{self.quantization}/{package}-{importlib.metadata.version(package)}"


def quantise(module: nn.Module, storage: Storage) -> None:
    """Replace the weights of the base's linear layers by int8 or int4 ones, in place, a layer at a time.

    Heads stay as they are: the output layer, and a classifier. A pure function of weights and storage, up to the order
    in which a CPU packs int4. Nothing happens for `none`, and for bitsandbytes, which quantises while it loads.
    """
    if storage.quantization not in ("int8", "int4"):
        return
    with silent_libraries():
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        eight = Int8WeightOnlyConfig(version=2)
        for layer in [layer for layer in module.modules() if type(layer) is nn.Linear]:
            group = _int4_group(layer)
            if storage.quantization == "int4" and group is not None:
                _take_bfloat16(layer)
                quantize_(layer, _int4(group, layer.weight.device), filter_fn=_always)
            else:
                quantize_(layer, eight, filter_fn=_always)


def _int4_group(layer: nn.Linear) -> int | None:
    """Inputs that share a scale in an int4 layer of this shape; None where int4 does not fit and int8 is used."""
    if layer.out_features % _INT4_ROWS:
        return None
    return next((group for group in _GROUPS if layer.in_features % group == 0), None)


def packed_weights(module: nn.Module, storage: Storage) -> dict[int, int]:
    """`id` of each weight that `quantise` would replace → the bytes it takes then, codes and scales; from shapes."""
    if storage.quantization == "none":
        return {}
    found: dict[int, int] = {}
    for layer in module.modules():
        if not isinstance(layer, nn.Linear):
            continue
        outputs, elements, group = layer.out_features, layer.weight.numel(), _int4_group(layer)
        if storage.quantization == "bnb-nf4":
            size = elements // 2 + 4 * (elements // 64)
        elif storage.quantization == "int4" and group is not None:
            size = elements // 2 + 4 * (elements // group)  # bf16 scale and zero
        else:
            size = elements + (4 if storage.quantization == "bnb-int8" else 5) * outputs  # scale, and zero
        found[id(layer.weight)] = size
    return found


def _take_bfloat16(layer: nn.Linear) -> None:
    """Hold a layer in bf16 inside, whatever it is given and has to give back.

    The int4 product is made for bf16 (on a GPU it takes nothing else): on a CPU with AVX-512, 512 rows of 768 × 768
    took 11 ms in bf16 and 1510 ms in fp32.
    """
    outside = layer.weight.dtype
    if outside == torch.bfloat16:
        return

    def narrowed(_layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (arguments[0].to(torch.bfloat16), *arguments[1:])

    def widened(_layer: nn.Module, _arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.to(outside)

    layer.to(torch.bfloat16)
    layer.register_forward_pre_hook(narrowed)
    layer.register_forward_hook(widened)


def _always(_layer: nn.Module, _name: str) -> bool:
    return True


def is_quantised(tensor: Tensor) -> bool:
    """Whether a parameter or buffer is a quantised weight rather than plain numbers."""
    return type(tensor.data) is not Tensor or not tensor.is_floating_point()


def _int4(group: int, device: torch.device) -> Any:
    if device.type == "cuda":
        from torchao.quantization import Int4WeightOnlyConfig

        return Int4WeightOnlyConfig(group_size=group)
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=group, set_inductor_config=False)


def _bitsandbytes(storage: Storage) -> Any:
    import transformers

    config: Any = transformers.BitsAndBytesConfig
    if storage.quantization == "bnb-int8":
        return config(load_in_8bit=True)
    return config(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=storage.torch_dtype)


def _require(package: str, quantization: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise DpzoError(
            f"model.quantization {quantization}: needs {package}; pip install {package} (or the extra dpzo[{extra}])"
        )
