"""Functions that run elsewhere while a handler waits."""
