"""Progress and messages of long work."""
