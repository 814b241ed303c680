"""What a run is on disk, and how objects come from it."""
