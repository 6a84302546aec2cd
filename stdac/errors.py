"""The exceptions that a user is meant to read."""


class StdacError(Exception):
    """Bad input or a failed environment, told in one sentence: what was got, what was expected, what to do."""


class MachineError(StdacError):
    """The machine is at fault, not the trial, which is given back: nothing is marked as failed."""


class DiskFull(MachineError):
    """No space left: free some and go on."""


class NotHere(MachineError):
    """This machine lacks what a trial needs: its data, a library, a device, the right to read."""
