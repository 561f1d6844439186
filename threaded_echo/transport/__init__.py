"""What stands between the accept of a connection and its handler."""
