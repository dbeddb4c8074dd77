"""The one error that is the user's to mend, and how others' errors are quoted in it."""


class UserError(Exception):
    """Something asked for cannot be done; the message is one sentence that says what, why, and what to try.

    The command line prints it without a traceback and exits with status 2. Everything else is a bug and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
