"""Tests of threaded_echo.offloading."""
