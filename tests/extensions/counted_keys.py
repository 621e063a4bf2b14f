"""A source of keys from outside the package, without an LM: each key is the recent text, as hashed n-grams of bytes."""

from pathlib import Path

import numpy as np

from knnstore.exchange.keysource import KeySource

ORDERS = (1, 2, 3, 5)  # lengths of the n-grams, in bytes


def hashed_ngrams(data: bytes, width: int) -> np.ndarray:
    """Return the key before each byte: float32 (len(data), width), the sum of a random vector per n-gram."""
    vectors = np.random.default_rng(0).normal(size=(4096, width)).astype(np.float32)
    codes = np.frombuffer(data, np.uint8).astype(np.uint64)
    keys = np.zeros((len(data), width), np.float32)
    for order in ORDERS:
        hashes = np.zeros(len(data), np.uint64)
        for back in range(1, order + 1):
            hashes[back:] = hashes[back:] * np.uint64(257) + codes[:-back] + np.uint64(1)
        keys += vectors[(hashes * np.uint64(11400714819323198485)) >> np.uint64(52)]
    return keys


class ByteKeys(KeySource):
    dimension = 32

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*.txt"))
        self.name = str(folder)
        self.rows = sum(path.stat().st_size for path in self.files)

    def documents(self):
        return [(path.name, path.stat().st_size) for path in self.files]

    def read_values(self, begin, end):
        return np.frombuffer(b"".join(path.read_bytes() for path in self.files), np.uint8)[begin:end].astype(np.int64)

    def read_keys(self, begin, end):
        keys = np.concatenate([hashed_ngrams(path.read_bytes(), self.dimension) for path in self.files])
        return keys[begin:end]
