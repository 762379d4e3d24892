"""Run the server in this process, until it is told to stop."""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import uvloop

from seatrial.machine import cores
from seatrial.settings import Settings
from seatrial_serving.fork_server import ENGINES, FRUGAL, GATEWAYS, ForkServer

if TYPE_CHECKING:
    from seatrial_serving.server import Addresses


def run(what: Sequence[str], settings: Settings, *, ready: "Callable[[Addresses], None]") -> None:
    """Blocks until SIGTERM or SIGINT. Our own log goes to standard error, requests to standard output."""
    log_to_standard_error()
    gc.disable()  # everything that is made now stays; a gateway that is ready enables it again
    engine_forks, gateway_forks = ForkServer(ENGINES), ForkServer(GATEWAYS)
    engine_forks.execute()  # which imports while we do
    # Before they are imported. gRPC's fork handlers can only complain: nothing of it runs yet when gateways are forked.
    os.environ |= FRUGAL | {"GRPC_ENABLE_FORK_SUPPORT": "0"}
    from seatrial_serving.doors.closings import raise_descriptor_limit
    from seatrial_serving.gateway import how_many
    from seatrial_serving.server import serve
    from seatrial_serving.sources import parse

    raise_descriptor_limit()
    sources = [parse(each) for each in what]
    if how_many(settings.serving, cores=cores()) > 1:
        gateway_forks.split()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sources, settings, ready=ready, engine_forks=engine_forks, gateway_forks=gateway_forks))


def log_to_standard_error() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it would warn of every request that is none
