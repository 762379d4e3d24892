"""`seatrial` as a child that does not outlive its parent: `python -m seatrial_serving.tune.child serve ...`"""

import ctypes
import signal

from seatrial.cli import main

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    main()
