"""Engines that compute for an index: protocols, and implementations in NumPy and faiss, in C, and on a device."""
