"""Rows of the tasks and how a model reads them: shapes, chat templates, marks."""
