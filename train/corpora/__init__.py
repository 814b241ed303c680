"""Text on disk: where it lies, how it is read, split and cached."""
