"""Libraries that reading checkpoints does without: imported when first needed, as they take seconds, or left out.

``import cpift`` and ``cpift identify`` work without transformers; it is asked only where a checkpoint's files leave
something open.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from cpift.extras import load

Untyped: TypeAlias = Any
"""What another library gives, whose classes are not known to the type checker: a module, a model, a tensor."""


def library(name: str) -> Untyped:
    """A module by its name. Raises ImportError where it is not installed, with the extra that has it."""
    return load(name)


def optional_library(name: str) -> Untyped | None:
    """A module by its name; None where it, or what it imports, is not installed."""
    try:
        return load(name)
    except ImportError:
        return None


@contextmanager
def silent() -> Iterator[None]:
    """Without transformers' warnings and bars: what matters of them is raised as an error."""
    logging = library("transformers").utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
