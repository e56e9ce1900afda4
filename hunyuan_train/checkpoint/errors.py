"""The error that a checkpoint which cannot be used ends in."""


class CheckpointError(ValueError):
    """A checkpoint or export that cannot be read or written. Names file, fault and remedy."""


class NotCopiedError(CheckpointError):
    """The user's command after the last checkpoint has failed. Names the command and how."""


class NoRoomError(CheckpointError):
    """A disk that does not take what is to be written. Names the place and what it needs."""


class DiskError(CheckpointError):
    """A disk that returns something else than was written to it."""
