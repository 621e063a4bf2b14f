"""The exact-match memory: finds where the end of a context occurs in the store, and what followed it there."""
