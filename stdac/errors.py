"""The one exception that a user is meant to read."""


class StdacError(Exception):
    """Bad input or a failed environment, told in one sentence: what was got, what was expected, what to do."""
