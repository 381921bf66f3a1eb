"""Benchmarks of ensq, each a pair of times measured in one run; see ``scripts/benchmark``."""
