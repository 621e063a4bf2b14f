"""Score texts with an LM and a store: neighbours, mixtures, perplexities."""
