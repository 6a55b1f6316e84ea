"""Published experiments as functions: the theory they rest on, and what their papers' numbers are in our units."""
