"""Training: pretraining's loop and a run's files, adapters, instructions, preferences."""
