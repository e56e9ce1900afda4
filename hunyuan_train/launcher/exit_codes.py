"""What the exit code of a rank, of torchrun's agent and of the launcher means."""

import signal

SUCCESS = 0
FAILURE = 1
USER_ERROR = 2  # a setting or a file is wrong: starting again would end the same way
RESUME = 75  # stopped on purpose with a checkpoint on disk (sysexits.h calls it EX_TEMPFAIL)
INTERRUPTED = 128 + signal.SIGINT
