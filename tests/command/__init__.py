"""Tests of the command line, all of it in this process."""
