"""The exceptions that a user is meant to read."""


class StdacError(Exception):
    """Bad input or a failed environment, told in one sentence: what was got, what was expected, what to do."""


class DiskFull(StdacError):
    """No space left: no trial's fault, so nothing is marked as failed; free some space and go on."""
