"""Figures and tables, of anything."""
