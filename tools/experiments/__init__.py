"""Experiments over saved neighbours: see ``tools/experiment.py``."""
