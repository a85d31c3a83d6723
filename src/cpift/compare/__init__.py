"""The comparison lab: methods × seeds × budgets on a recipe's tasks, with statistics."""

from cpift.compare.lab import FILE, compare

__all__ = ["FILE", "compare"]
