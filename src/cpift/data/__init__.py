"""Data in: file kinds, shapes of rows, answers, and what a model will see of them."""
