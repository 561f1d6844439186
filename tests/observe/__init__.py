"""Tests of what the package tells."""
