"""What an index computes with: protocols, and their implementations by NumPy and faiss, by C, and on a device."""
