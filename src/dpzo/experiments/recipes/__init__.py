"""Published experiments as functions: one full config each, their theory, and papers' numbers in dpzo's units.

`registry.RECIPES` has them by name; `methods` has the methods alone, as `dpzo compare` runs them; `running` runs an
experiment.
"""
