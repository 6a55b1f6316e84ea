"""Compare methods with the same sampler, accountant, model and score: cells that run once, and a table of them.

For public data only: scores are computed on held-out records, and some methods have no privacy at all.
"""
