"""The recipe: its keys, defaults and checks."""
