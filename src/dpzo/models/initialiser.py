"""The public seed as an initialiser of new parameters."""

from __future__ import annotations

import math

from torch import Tensor

from dpzo.models.trainable import Initialiser
from dpzo.zo.initial import public_uniform


def seeded_initialiser(seed: int) -> Initialiser:
    """Uniform values on [−1, 1) from the public seed: a pure function of seed, parameter name and shape.

    They come from counters that no direction uses, so no initial value is ever drawn again.
    """

    def initialise(name: str, shape: tuple[int, ...]) -> Tensor:
        return public_uniform(seed, name, math.prod(shape), -1.0, 1.0).reshape(shape)

    return initialise
