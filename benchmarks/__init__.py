"""Benchmarks: ``pytest benchmarks/ --benchmark`` measures, ``python -m benchmarks`` reads the results."""
