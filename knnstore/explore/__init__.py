"""A local web page that shows what a store does to an LM, token by token."""
