"""What the exit code of a rank, of a node and of a whole run says."""

import signal

SUCCESS = 0
FAILURE = 1
USER_ERROR = 2  # a setting or a file is wrong; trying again changes nothing
HOST_LOST = 74  # a host crashed, was cut off or could not be reached (EX_IOERR of sysexits.h)
RESUME = 75  # stopped with everything saved: start it again to go on (EX_TEMPFAIL)
INTERRUPTED = 128 + signal.SIGINT  # the user's stop
TERMINATED = 128 + signal.SIGTERM
HUNG_UP = 128 + signal.SIGHUP
KILLED = 128 + signal.SIGKILL
STOPPED_BY_USER = (INTERRUPTED, TERMINATED, HUNG_UP)
