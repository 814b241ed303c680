"""Mechanisms that carry information from one segment to the next: (x, state) -> (y, state)."""
