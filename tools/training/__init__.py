"""Training a small causal language model, resumably: the parts of train_lm.py."""
