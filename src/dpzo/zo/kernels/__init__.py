"""Kernels that turn counters into direction elements: `reference` (plain torch, the oracle) and `cpu` (numba)."""
