"""The benchmark of methods for long tails; run.py runs it."""
