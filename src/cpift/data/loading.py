"""What ``datasets`` loads, with its many kinds of errors as one line. A recipe is read without this library."""

from __future__ import annotations

from collections.abc import Callable

from cpift.checkpoint.library import Untyped, library
from cpift.errors import CpiftError


def loaded(what: str, load: Callable[[], object]) -> Untyped:
    """What ``load`` gives.

    Raises:
        CpiftError: it fails, for whatever reason: the library raises many kinds, some of its dependencies.
    """
    logging = library("datasets").logging
    logging.set_verbosity(logging.CRITICAL)  # what it has to report comes with the exception
    try:
        return load()
    except Exception as error:
        raise CpiftError(f"{what} cannot be loaded: {' '.join(str(error).split())}{_hint(str(error))}") from error


def _hint(text: str) -> str:
    return "; config: in the recipe names it" if "Config name is missing" in text else ""
