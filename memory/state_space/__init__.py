"""State-space models and gated linear recurrences."""
