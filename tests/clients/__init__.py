"""Tests of threaded_echo.clients."""
