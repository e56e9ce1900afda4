"""The error that ends a training which cannot go on by itself."""


class TrainingError(RuntimeError):
    """Why training ended. Names the step, what was found there and what may help."""
