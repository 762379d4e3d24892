"""`seatrial` as a child that does not outlive its parent: `python -m seatrial_serving.tune.child PARENT serve ...`"""

import ctypes
import os
import signal
import sys

from seatrial.cli import main

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent = int(sys.argv.pop(1))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was over before that could be asked for
        sys.exit(1)
    main()
