"""Data, tasks, loop and command line: knows models only through zoo.module."""
