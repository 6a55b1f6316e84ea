"""A fixed public mask in plain torch on any device: the test oracle of `mask_cpu`.

Element j of a parameter uses word j of the stream, four words per block; it is kept if the word is below a threshold.
"""

from __future__ import annotations

from torch import Tensor

from dpzo.zo.kernels.reference import uniform_words
from dpzo.zo.kernels.spec import Stream


def keep(stream: Stream, threshold: int, out: Tensor, start: int) -> None:
    """out_j ← out_j where word start + j is below `threshold`, else +0; `out` flat fp32, 0 ≤ threshold ≤ 2³²."""
    words = uniform_words(stream, start, out.numel(), out.device)
    out.masked_fill_(words >= threshold, 0.0)
