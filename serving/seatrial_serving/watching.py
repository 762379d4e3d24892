"""The server's end of the registry watcher: starts the child, reads its lines, starts it again if it dies."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from seatrial.registry import ModelRef
from seatrial.registry.events import Event, decode
from seatrial.settings import Settings

RESTART_S = 1.0
COMMAND = sys.executable, "-m", "seatrial.registry.watch"

log = logging.getLogger(__name__)


async def watch(
    refs: Sequence[ModelRef], settings: Settings, *, command: Sequence[str] = COMMAND
) -> AsyncGenerator[Event, None]:
    """Events about `refs`, without end. Close the iterator to end the child."""
    while True:
        try:
            child = await asyncio.create_subprocess_exec(
                *(*command, *map(str, refs)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                env=os.environ | _as_environment(settings),
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        except OSError as error:  # no process or descriptor is left for it
            log.error("the registry watcher cannot be started: %s; what is served stays, and it is tried again", error)
            await asyncio.sleep(RESTART_S)
            continue
        assert child.stdout is not None, "asked for a pipe and got none: this is a bug"
        try:
            while (line := await child.stdout.readline()).endswith(b"\n"):  # the last one of a killed child may be cut
                yield decode(line)
        finally:
            with suppress(ProcessLookupError):
                child.kill()
            code = await child.wait()
        log.error("the registry watcher ended with code %d; what is served stays, and it is started again", code)
        await asyncio.sleep(RESTART_S)


def _as_environment(settings: Settings) -> dict[str, str]:
    """What the child must read to see the same registry, wherever our own settings came from."""
    return {
        "SEATRIAL_HOME": str(settings.home),
        "SEATRIAL_REGISTRY__TRACKING_URI": settings.tracking_uri,
        "SEATRIAL_REGISTRY__TARGET": settings.registry.target,
        "SEATRIAL_REGISTRY__FALLBACKS": json.dumps(settings.registry.fallbacks),
        "SEATRIAL_REGISTRY__POLL_S": str(settings.registry.poll_s),
        "SEATRIAL_REGISTRY__TIMEOUT_S": str(settings.registry.timeout_s),
    }
