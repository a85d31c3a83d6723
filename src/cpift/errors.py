"""The one exception that users are meant to see."""


class CpiftError(Exception):
    """A mistake in what was given: one clear line that names the thing and says what to do.

    The command line prints the message and exits with code 2, without a traceback.
    """
