"""The one exception that users are meant to see, the two faults of the machine reported like it, and "did you mean"."""

import difflib
import errno
from collections.abc import Iterable, Iterator


class CpiftError(Exception):
    """A mistake in what was given: one clear line that names the thing and says what to do.

    The command line prints the message and exits with code 2, without a traceback.
    """


class OutOfMemory(CpiftError):
    """A batch or a model for which there is no memory. Trying again as it stands would end the same way."""


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Is a lack of memory, of a device or of the machine, behind this error?

    Known by name and by words: torch has several classes for it, and this module loads without torch.
    """
    return any(
        isinstance(cause, MemoryError | OutOfMemory)
        or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        or type(cause).__name__ == "OutOfMemoryError"
        or (isinstance(cause, RuntimeError) and any(text in str(cause) for text in _OUT_OF_MEMORY))
        for cause in causes(error)
    )


def is_disk_full(error: BaseException) -> bool:
    """Is a full disk behind this error? Libraries in other languages have exceptions of their own for it."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(cause) for text in ("No space left on device", "inline_container.cc")):
            return True  # torch names only the place where its writer failed
    return False


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and the errors behind it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like a misspelt one.

    Args:
        name: what was written.
        known: the names that would have been right.
        cutoff: similarity below which none is suggested, 0 to 1 (:func:`difflib.get_close_matches`).
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of an error message, ``; did you mean 'probe'?``, or nothing where no known name is near.

    Args:
        name: what was written.
        known: the names that would have been right.
        cutoff: as in :func:`nearest`.
    """
    near = nearest(name, known, cutoff)
    return f"; did you mean {near!r}?" if near else ""
