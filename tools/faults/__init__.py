"""Fault injection into stores, for ``tools/torture.py``."""
