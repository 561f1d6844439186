"""The clients: the live ones, their connections, and the threads that serve them."""
