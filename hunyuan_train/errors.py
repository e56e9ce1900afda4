"""The errors that a user can fix. Each names the setting or the place, the rule and the remedy."""


class ConfigError(ValueError):
    """A setting the user can fix. Its text names the setting, the rule and the remedy."""


class DataError(ValueError):
    """A mistake in the user's data or data settings."""
