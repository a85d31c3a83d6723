"""Scores of a model on tasks, and on text that is no task."""
