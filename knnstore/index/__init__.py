"""The IVF-PQ index: training, filling, merging, searching. The only place that knows faiss."""
