"""Language models: loading, fixed-shape batches, per-example losses, isolation."""
