"""Memories that are matrices, written by outer products."""
