"""``knnstore verify``: check every byte of a store against the checksums recorded when it was written."""
