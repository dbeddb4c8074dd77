"""The one error that is the user's to mend."""


class UserError(Exception):
    """Something asked for cannot be done; the message is one sentence that says what, why, and what to try.

    The command line prints it without a traceback and exits with status 2. Everything else is a bug and keeps its traceback.
    """
