"""What is on disk: the only place that knows the layout of a store."""
