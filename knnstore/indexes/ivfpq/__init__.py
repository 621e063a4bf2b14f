"""The IVF-PQ index: inverted lists of keys with their product-quantisation codes."""
