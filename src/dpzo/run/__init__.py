"""Training runs: fine-tune, resume, replay and evaluate a model, and the journal that records each release."""
