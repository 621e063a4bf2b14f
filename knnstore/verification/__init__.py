"""``knnstore verify``: every byte of a store against the checksums that were recorded when it was written."""
