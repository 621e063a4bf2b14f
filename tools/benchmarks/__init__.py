"""The benchmarks of ``tools/bench.py``: one module each, named baselines measured in turn in the same run."""
