"""Several methods under one sampler, accountant, model and score: cells that are run once, and the table they make.

For public data: scores are read on held-out records, and some methods have no privacy at all.
"""
