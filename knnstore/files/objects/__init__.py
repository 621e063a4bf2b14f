"""Stores in object storage: paths that are URLs, a local cache, and the lock of a writer. obstore is an extra."""
