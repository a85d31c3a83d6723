"""Inner loops, compiled by numba, and what keeps them fed."""
