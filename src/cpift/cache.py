"""Where things are kept that can be made again: scores, answers of judges, verdicts, machine code."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "CPIFT_CACHE"


def cache_folder() -> Path:
    """``CPIFT_CACHE``, else ``cpift`` in the user's cache."""
    given = os.environ.get(CACHE)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(given) if given else Path(home) / "cpift"
