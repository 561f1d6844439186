"""Tests of threaded_echo.observe."""
