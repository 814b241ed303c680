"""Text on disk: its paths, reading, splits and cache."""
