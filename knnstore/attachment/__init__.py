"""A language model joined to a store: the search, the setting, the check that they belong together, the hooks."""
