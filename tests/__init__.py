"""Tests: one module per module, whole programs in system/."""
