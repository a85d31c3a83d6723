"""A run: its stages, who makes them, what it leaves."""
