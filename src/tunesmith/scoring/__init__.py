"""Scores: what is asked and expected, generation, perplexity, metrics, paired statistics."""
