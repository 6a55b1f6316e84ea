"""Kernels that turn counters into direction elements: `reference` (plain torch, the test oracle) and `cpu` (numba)."""
