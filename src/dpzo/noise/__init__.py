"""Scalar noise on an integer lattice: the table that is sampled and accounted, its distributions, and their search."""
