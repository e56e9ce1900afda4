"""The error of files that would not serve what was trained."""


class ServeError(ValueError):
    """The written files do not compute what was trained. They are not published."""
