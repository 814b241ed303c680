"""The functions of `import zoo`: they take the arguments of the command line and return objects."""
