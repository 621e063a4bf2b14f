"""Resumable training of a small causal language model: the parts of train_lm.py."""
