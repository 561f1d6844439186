"""Listeners and connections: their addresses, TLS, what the kernel knows of them, and what ends a wait for them."""
