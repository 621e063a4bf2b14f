"""Turn a corpus into a store: tokens first, then keys."""
