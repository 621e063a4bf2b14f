"""Store in, index out: trained once, and filled with each segment."""
