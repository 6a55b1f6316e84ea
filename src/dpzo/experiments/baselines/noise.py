"""Gaussian noise in floating point, one number per coordinate, directly from the operating system's entropy.

The exact sampler of the private channel is too slow for a vector of millions of coordinates, so the baselines that
release one use floats, and their cards say so. The source of randomness is the same: there is no generator in between.
A `torch.Generator` would be a poor choice: on CPU it uses only 32 bits of its seed, however long, so that all the noise
of a run could be recovered by trying every seed.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpzo.privacy import Randomness

_BLOCK = 1 << 16
"""Numbers drawn at a time: 1 MiB of scratch, whatever the dimension."""


def float_normals(size: int, randomness: Randomness) -> NDArray[np.float64]:
    """`size` independent standard normals, rounded: shape (size,), float64, |z| ≤ 8.6.

    z = √(−2 ln u)·(cos 2πv, sin 2πv) with u ∈ (0, 1], v ∈ [0, 1) of 53 bits each.

    No guarantee against attacks on floating-point noise (Mironov 2012). Source: Box and Muller 1958.
    """
    words = randomness.word_array(2 * ((size + 1) // 2)) >> np.uint64(11)
    first, second = np.split(words, 2)
    radius = np.sqrt(-2.0 * np.log((first + np.uint64(1)) * 2.0**-53))
    angle = (2.0 * np.pi * 2.0**-53) * second
    return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:size]


def add_noise(flat: Tensor, std: float, randomness: Randomness) -> None:
    """flat_j ← flat_j + std·z_j in place, block by block, z drawn from `randomness`; flat is one-dimensional, fp32."""
    for start in range(0, flat.numel(), _BLOCK):
        part = flat[start : start + _BLOCK]
        noise = (std * float_normals(part.numel(), randomness)).astype(np.float32)
        part.add_(torch.from_numpy(noise).to(part.device))
