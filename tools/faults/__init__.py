"""What ``tools/torture.py`` does to stores."""
