"""knnstore: an explicit memory, on disk, for any causal language model."""

__version__ = "0.1.0"
