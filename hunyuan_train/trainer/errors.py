"""The error that a training which cannot go on by itself ends in."""


class TrainingError(RuntimeError):
    """What the training came to. Names the step, what was found there and what may help."""
