"""Tests of threaded_echo.transport."""
