"""Corpus in, store out: tokens first, keys second."""
