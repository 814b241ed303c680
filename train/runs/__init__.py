"""A run on disk, and the objects built from it."""
