"""Data in: file kinds, shapes of rows, answers, chat templates and marks."""
