"""Where keys come from: causal language models of the Hugging Face family."""
