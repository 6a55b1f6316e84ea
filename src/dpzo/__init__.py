"""dpzo: private fine-tuning of language models with forward passes only."""
