"""The join: an LM and a store on a text, to perplexities."""
