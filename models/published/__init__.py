"""Loaders for the published implementations: their weights in, our models out."""
