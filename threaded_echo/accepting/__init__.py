"""Accepting: who accepts the next connection, who is let in, what a failed accept means; and what ``run`` does."""
