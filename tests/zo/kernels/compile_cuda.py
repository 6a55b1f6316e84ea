"""Compile the Triton kernels for CUDA machines that need not be there; print their PTX as JSON."""

from __future__ import annotations

import json
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dpzo.zo.kernels import cuda, cuda_words, spec
from dpzo.zo.kernels.cuda_elements import EXACT

POINTERS = {
    "thirds": "*i32",
    "factors": "*fp32",
    "coefficients": "*fp32",
    "total": "*i64",
    "rows": "*i64",
    "bits": "*i16",
}
FUSED = {"num_warps": 4, "enable_fp_fusion": True}
SCALARS = {"factor": "fp32", "scale": "fp32", "first": "i64", "count": "i64", "threshold": "i64"}


def ptx(kernel: Any, dtype: str, constants: dict[str, Any], arch: int, options: dict[str, Any]) -> str:
    """The code for one type of weights. Kernels of this project have their constants in capitals."""
    signature = {}
    for name in kernel.arg_names:
        weight = dtype if name in ("base", "out", "acc", "theta", "wide") else ""
        signature[name] = POINTERS.get(name) or (f"*{weight}" if weight else SCALARS.get(name, "i32"))
    if kernel is cuda_words._round:
        signature["out"] = "*i16"
    own = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature |= dict.fromkeys(own, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=own)
    code = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm["ptx"]
    return "\n".join(line for line in code.splitlines() if not line.strip().startswith((".loc", "//", ".file", ".b8")))


def main() -> None:
    signs, normals, walsh = spec.SIGNS, spec.NORMALS, spec.WALSH
    kernels = [
        (cuda._add, "fp32", normals, 90),
        (cuda._add, "bf16", normals, 80),
        (cuda._add, "bf16", signs, 90),
        (cuda._add, "fp16", walsh, 90),
        (cuda._fill, "fp32", normals, 90),
        (cuda._add_rows, "bf16", normals, 90),
        (cuda._accumulate, "fp32", normals, 90),
        (cuda._accumulate, "fp32", walsh, 90),
        (cuda._step_rounded, "bf16", normals, 90),
        (cuda._step_rounded, "fp16", signs, 90),
        (cuda._square_sum, "fp32", normals, 90),
        (cuda_words._round, "fp32", signs, 90),
        (cuda_words._keep, "fp32", signs, 90),
    ]
    found = []
    for kernel, dtype, law, arch in kernels:
        constants = {**cuda._shape(law), "STEP": True, "BF16": True}
        row = {"kernel": kernel.__name__, "law": law, "arch": arch, "ptx": ptx(kernel, dtype, constants, arch, EXACT)}
        found.append({**row, "fused_ptx": ptx(kernel, dtype, constants, arch, FUSED) if kernel is cuda._fill else ""})
    print(json.dumps(found))


main()
