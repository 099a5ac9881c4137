"""Judging a model: likelihoods, tasks, how sure a score is."""
