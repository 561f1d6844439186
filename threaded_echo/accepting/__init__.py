"""Who accepts the next connection, and what a failed accept means."""
