"""Build the index of a store: it is trained once and filled with each segment."""
