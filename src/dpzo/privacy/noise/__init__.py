"""Further scalar noises on an integer lattice: the table that is both sampled and accounted, and the laws behind it."""
