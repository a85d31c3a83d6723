"""The finished run that the faults are measured by, and its recipe as a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import tiny_run
import yaml


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    with tiny_run.one_thread():
        yield


@pytest.fixture(scope="package")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that nothing happened to."""
    return tiny_run.finished_run(tmp_path_factory)


@pytest.fixture(scope="package")
def recipe(whole: Path) -> Path:
    """The file of its recipe."""
    file = whole.parent / "faults.yaml"
    file.write_text(yaml.safe_dump(tiny.recipe(whole.parent), sort_keys=False))
    return file
