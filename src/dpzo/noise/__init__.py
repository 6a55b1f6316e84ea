"""Scalar noises on an integer lattice: the table that is both sampled and accounted, its laws, and their search."""
