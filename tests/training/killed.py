"""`python -m tests.training.killed PLACE=HOME...`: trainings that die, each at its place and in its home.

Everything is imported once; each training is a fork of its own, killed by a real SIGKILL (or asked to end by SIGTERM)
just when it reaches its place. Prints how each ended, one line each.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = ("epochs=3", "architecture.config.hidden=[16]")
RECIPE = "digits-mlp"


def main() -> None:
    import mlflow.pytorch  # noqa: F401 - before the forks, which then need not

    import seatrial_training.train  # noqa: F401

    for argument in sys.argv[1:]:
        place, _, home = argument.partition("=")
        if (pid := os.fork()) == 0:
            train(place, home)
        _, status = os.waitpid(pid, 0)
        print(place, os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


def train(place: str, home: str) -> None:
    """`seatrial train`, typed in `home`; never returns."""
    from seatrial.cli import main as seatrial

    owner, name, at_call, number = places()[place]
    setattr(owner, name, dying(getattr(owner, name), at_call=at_call, number=number))
    os.environ["SEATRIAL_HOME"] = home
    sys.argv = ["seatrial", "train", RECIPE, *(word for change in CHANGES for word in ("--set", change))]
    try:
        with Path(home, "said").open("w") as said:
            os.dup2(said.fileno(), 2)
            seatrial()
    except SystemExit as ended:
        os._exit(int(ended.code or 0))
    finally:
        os._exit(99)


def places() -> dict[str, tuple[Any, str, int, int]]:
    """Whose function it is, its name, before which of its calls to die, and of which signal."""
    from mlflow import MlflowClient

    from seatrial_training import registration
    from seatrial_training.fit import History
    from seatrial_training.run import Run

    return {
        "in-the-first-epoch": (History, "on_train_epoch_end", 1, signal.SIGKILL),
        "in-the-third-epoch": (History, "on_train_epoch_end", 3, signal.SIGKILL),
        "asked-to-end": (History, "on_train_epoch_end", 2, signal.SIGTERM),
        "before-the-program": (registration, "_log_program", 1, signal.SIGKILL),
        "after-the-program": (registration, "_create_model", 1, signal.SIGKILL),
        "before-the-version": (MlflowClient, "create_model_version", 1, signal.SIGKILL),
        "after-the-version": (Run, "finish", 1, signal.SIGKILL),
    }


def dying(function: Callable[..., Any], *, at_call: int, number: int) -> Callable[..., Any]:
    """`function`, whose call number `at_call` begins with the signal `number` to this process."""
    calls = 0

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at_call:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    return wrapped


if __name__ == "__main__":
    main()
