"""Tests of threaded_echo.testing."""
