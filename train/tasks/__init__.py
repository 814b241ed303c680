"""Tasks: datasets of tokens with targets, and how predictions are scored."""
