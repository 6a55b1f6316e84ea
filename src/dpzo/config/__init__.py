"""The configuration of a run: schema, parsing, default values, and the privacy plan that follows from it."""
