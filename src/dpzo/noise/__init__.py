"""Scalar noises on an integer lattice: the table that is both sampled and accounted, its laws, and their search."""

import dpzo.privacy  # noqa: F401 - the plan imports tables; loaded first, neither waits for the other
