"""The error that every wrong setting ends in."""


class ConfigError(ValueError):
    """A setting the user can mend. Its text names the setting, the rule and the remedy."""
