"""Gated linear attention, a model for the zoo."""
