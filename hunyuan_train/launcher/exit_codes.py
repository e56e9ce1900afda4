"""What the exit code of a rank, of what starts ranks and of the launcher means."""

import signal

SUCCESS = 0
FAILURE = 1
USER_ERROR = 2  # a setting or a file is wrong: starting again would end the same way
NO_ROOM = 73  # the disk took nothing, to the end (sysexits.h calls it EX_CANTCREAT)
HOST_LOST = 74  # a host crashed, was cut off or cannot be reached (sysexits.h calls it EX_IOERR)
RESUME = 75  # stopped on purpose with a checkpoint on disk (sysexits.h calls it EX_TEMPFAIL)
NOT_COPIED = 76  # the run is complete, but after_checkpoint failed for its last checkpoint
INTERRUPTED = 128 + signal.SIGINT
KILLED = 128 + signal.SIGKILL
TERMINATED = 128 + signal.SIGTERM
