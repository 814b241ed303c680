"""A trained run measured."""
