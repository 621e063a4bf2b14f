"""Searching keys: exactly, or by an index. The only place that knows faiss."""
