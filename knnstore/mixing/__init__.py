"""One mixture of an LM with its memories: p_kNN, the cache, exact matches, the gate, and what joins them."""
