"""Tests of threaded_echo.examples."""
