"""Experiments: published recipes, non-private baselines, and comparisons of methods."""
