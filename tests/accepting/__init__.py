"""Tests of threaded_echo.accepting."""
