"""Benchmarks: this package beside what people would pick instead. ``python -m tests.benchmarks --help``."""
