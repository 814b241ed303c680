"""The attention-free transformer, a model for the zoo."""
