"""The configs that the zoo finds through the entry point in pyproject.toml."""
