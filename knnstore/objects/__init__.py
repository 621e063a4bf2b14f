"""Stores in object storage: paths that are URLs, a local cache, and the lock of writers. obstore is an extra."""
