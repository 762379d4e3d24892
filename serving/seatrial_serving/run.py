"""Run the server in this process, until it is told to stop."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import uvloop

from seatrial.settings import Settings
from seatrial_serving.sources import parse

if TYPE_CHECKING:
    from seatrial_serving.server import Addresses


def run(what: Sequence[str], settings: Settings, *, ready: "Callable[[Addresses], None]") -> None:
    """Blocks until SIGTERM or SIGINT. Our own log goes to standard error, requests to standard output."""
    log_to_standard_error()
    # Before gRPC is imported: its fork handlers can only complain about our children, which are new programs.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    from seatrial_serving.doors.closings import raise_descriptor_limit
    from seatrial_serving.server import serve

    raise_descriptor_limit()
    sources = [parse(each) for each in what]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sources, settings, ready=ready))


def log_to_standard_error() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it would warn of every request that is none
