"""Batches: documents laid out in rows, resumable."""
