"""Arithmetic that can be checked with a pencil: pure functions, no state, no files."""
