"""The benchmarks of ``tools/bench.py``: one module each, with named baselines measured in the same run."""
