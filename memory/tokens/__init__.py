"""Memory tokens."""
