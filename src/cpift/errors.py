"""The one exception that users are meant to see, and the one fault of the machine that is told like it."""

import errno


class CpiftError(Exception):
    """A mistake in what was given: one clear line that names the thing and says what to do.

    The command line prints the message and exits with code 2, without a traceback.
    """


def is_disk_full(error: BaseException) -> bool:
    """Is a full disk behind this error? Libraries in other languages have exceptions of their own for it."""
    cause: BaseException | None = error  # (torch says no more than where its writer failed)
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(cause) for text in ("No space left on device", "inline_container.cc")):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
