"""Examples, each of which runs as it is: ``python3 -m threaded_echo.examples.NAME``."""
