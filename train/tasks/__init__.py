"""What is asked of a model: texts with targets."""
