"""A server that is told to takes the settings that tuning found for a bundle, where they were found on a machine like this."""

import logging
from collections.abc import Mapping
from pathlib import Path

from seatrial.bundle import open_bundle
from seatrial.errors import InvalidSettings, SeatrialError
from seatrial.machine import cores
from seatrial.settings import Serving
from seatrial_serving.tune.configuration import ENGINES, GATEWAYS, THREADS, Configuration, Value

log = logging.getLogger(__name__)


def follow(path: Path, serving: Serving) -> Serving:
    """`serving` as the evidence of the bundle in `path` advises, if that was measured on as many cores as there are here.

    Never an error: evidence may be replaced by anybody who can write it, and a server starts without it.
    """
    try:
        evidence = open_bundle(path).evidence()
    except SeatrialError as error:
        return _not_followed(path, serving, str(error))
    if evidence is None or evidence.tuning is None:
        return _not_followed(path, serving, "it was not tuned here; `seatrial tune` does that")
    found = evidence.tuning
    if found.machine.cores != cores():
        return _not_followed(path, serving, f"it was tuned on {found.machine.cores} cores and there are {cores()} here")
    try:
        followed = _within_reason(found.settings).within(serving)
    except InvalidSettings as error:
        return _not_followed(path, serving, str(error))
    log.info("%s is served as it was tuned on %s: %s", path, found.written_at, found.settings or "as it is set anyway")
    if (gateways := found.settings.get(GATEWAYS) or 1) != (serving.gateways or 1):
        log.warning("%s was tuned with %s gateways, which the server has and not a model: --gateways", path, gateways)
    return followed


def _within_reason(settings: Mapping[str, Value]) -> Configuration:
    """Raises `InvalidSettings` for what `tune` would never advise: more of anything than there are cores."""
    for name in (ENGINES, THREADS, GATEWAYS):
        if (value := settings.get(name)) is not None and value > cores():
            raise InvalidSettings(f"{name}={value:g} is more than the {cores()} cores here")
    return Configuration.parse(settings)


def _not_followed(path: Path, serving: Serving, why: str) -> Serving:
    log.warning("%s is served as it is set: %s", path, why)
    return serving
