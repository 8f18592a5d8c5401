"""Measures the package beside its peers: ``python -m benchmarks list``.

The method is in docs/performance.md.
"""
