"""What carries a client's bytes: TLS, and what the kernel knows of a connection."""
