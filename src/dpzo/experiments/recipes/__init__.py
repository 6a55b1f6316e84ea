"""Published experiments as functions: one full config each, the theory they rest on, papers' numbers in our units.

`registry.RECIPES` has them by name; `methods` the methods alone, as `dpzo compare` runs them; `running` carries one
out.
"""
