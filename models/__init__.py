"""Architectures, one file each; `published/` reads the weights of the published code."""
