"""Attach a store to a language model: the search, the setting, the check that they match, and the hooks."""
