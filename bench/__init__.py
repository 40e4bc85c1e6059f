"""The demo (a real social graph loaded through the HTTP API, then driven) and the benchmarks. Knows no service's code.

What the benchmarks know of services are their tables (population.py), their processes' names and their metrics.
"""
