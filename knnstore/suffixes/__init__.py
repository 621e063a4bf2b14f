"""The exact-match memory: where the last words of a context occur in the store, and what followed them there."""
