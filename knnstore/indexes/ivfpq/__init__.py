"""The IVF-PQ index: inverted lists of keys and their codes by product quantisation."""
