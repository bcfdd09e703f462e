"""The one exception that a user is meant to read."""


class BallastError(Exception):
    """Bad input or a broken invariant, told in one line.

    The message names the file, row or key, and says what to do. Entry points print it without a
    traceback and exit with status 1; anything else that is raised is a bug and keeps its traceback.
    """
