"""Settings for all tests."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")


def pytest_collection_finish() -> None:
    """The libraries' own objects stay: each stage collects garbage, and need not look through them again."""
    gc.collect()
    gc.freeze()
