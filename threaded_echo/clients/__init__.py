"""The clients: who is live, their connections, the threads that serve them."""
