"""Benchmark results: what was measured, on what, and what a reader makes of it."""
