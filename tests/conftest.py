"""Settings for all tests."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpift.kernels import loops

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
if (
    "CPIFT_CACHE" not in os.environ
):  # scores of earlier tests must not answer for later ones, nor lie in the user's cache
    _cache = tempfile.TemporaryDirectory(prefix="cpift-tests-")
    os.environ["CPIFT_CACHE"] = _cache.name

loops.FEW = -1  # models of the tests are small, and shall run what large ones run; test_loops.py compares the two
ROOT = Path(__file__).parents[1]

# Files whose tests take longest, by processor time: they begin first, so that no worker is left with one at the end.
LONGEST = (
    "test_real.py", "test_compare.py", "test_run.py", "test_signals.py", "test_ranks.py", "test_report_page.py",
    "test_gpu_scripts.py", "test_damage.py", "test_full_disk.py", "test_zoo.py", "test_engine.py", "test_ray.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, the others in their order."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_collection_finish() -> None:
    """The libraries' own objects stay: each stage collects garbage, and need not look through them again."""
    gc.collect()
    gc.freeze()


def _checkout() -> set[str]:
    """Names at the checkout's root, but for caches of tools."""
    return {name for name in os.listdir(ROOT) if not name.startswith((".", "__"))}


@pytest.fixture(autouse=True)
def _nothing_is_written_into_the_checkout() -> Iterator[None]:
    """A command without ``--out`` writes where it is started, which may be the checkout."""
    before = _checkout()
    yield
    assert _checkout() <= before, f"written into the checkout: {_checkout() - before}; use tmp_path"
