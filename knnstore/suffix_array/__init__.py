"""The exact-match memory: finds where the end of a context occurs in the store, and the tokens that followed it."""
