"""Foreign clients of what we write, each in an environment of its own: servers and converters."""
