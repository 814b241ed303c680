"""Memories that are searched: banks of keys and values."""
