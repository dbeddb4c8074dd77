"""The one error that is the user's to mend, and how others' errors are quoted in it."""


class UserError(Exception):
    """Something asked for cannot be done; the message is one sentence that says what, why, and what to try.

    The command line prints it without a traceback and exits with status 2. Everything else is a bug and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none; OmegaConf's after the key that it is about."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    key = getattr(error, "full_key", None)
    return f"{key}: {line}" if key and key not in line else line


def printable(text: object) -> str:
    """`text` on one line that any terminal shows: line breaks, other control characters and bytes of no text are escaped.

    File names may hold all of these.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
