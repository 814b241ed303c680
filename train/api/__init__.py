"""The functions of `import zoo`: they take the words of the command line and return objects."""
