"""Compute keys with causal and encoder-decoder language models of Hugging Face."""
