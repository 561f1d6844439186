"""Tests of whole programs: real netcats, CPython's own tests, many clients, stress."""
