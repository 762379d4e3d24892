"""From what somebody wrote behind `--on` to agents that are held, and to the targets that each is for."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from seatrial.credentials import Credentials
from seatrial.errors import InvalidSettings
from seatrial.registry import ModelVersion
from seatrial.settings import Settings
from seatrial_export.build import Tell
from seatrial_export.candidate import TARGETS
from seatrial_export.remote.client import Connection, check_address
from seatrial_export.remote.cluster import agent_on, check_selector
from seatrial_export.remote.there import There


@dataclass(frozen=True, slots=True, kw_only=True)
class On:
    """`where` is an agent's address or a Kubernetes node selector. Without `target` it is for all that no other one is for."""

    where: str
    target: str = ""

    @staticmethod
    def parse(text: str) -> "On":
        """Read `[TARGET=]URL` or `[TARGET=]KEY=VALUE,...`. Raises `InvalidSettings`."""
        first, equals, rest = text.partition("=")
        on = On(where=rest, target=first) if equals and first in TARGETS else On(where=text)
        check_address(on.where) if on.is_address else check_selector(on.where)
        return on

    @property
    def is_address(self) -> bool:
        return "://" in self.where


def assigned(on: Sequence[On], targets: Sequence[str]) -> dict[str, str]:
    """Where each target is measured, of those that are not measured here. Raises `InvalidSettings` for what is said twice, or
    of a target that nobody asked for."""
    found: dict[str, str] = {}
    for each in sorted(on, key=lambda each: not each.target):  # those for one target first
        if each.target and each.target not in targets:
            raise InvalidSettings(f"--on {each.target}=...: {each.target} is not exported; add --target {each.target}")
        for target in [each.target] if each.target else [target for target in targets if target not in found]:
            if target in found:
                raise InvalidSettings(f"--on says twice where {target} is measured: {found[target]} and {each.where}")
            found[target] = each.where
    if idle := {each.where for each in on} - set(found.values()):
        raise InvalidSettings(f"--on {min(idle)}: no target is left to be measured there")
    return found


@contextmanager
def reached(
    places: Mapping[str, str], version: ModelVersion, settings: Settings, *, folder: Path, tell: Tell
) -> Iterator[Mapping[str, There]]:
    """Hold an agent for each of `places` until the block ends; what was started on a cluster for it is taken away again.

    Raises `AgentRefused`, `AgentLost` and `InvalidSettings` before anything is done.
    """
    holder = f"{version} from {socket.gethostname()}"
    with ExitStack() as stack:
        held: dict[str, There] = {}
        for number, where in enumerate(dict.fromkeys(places.values())):
            url, shown = where, settings.credentials
            if "://" not in where:
                tell(where, "starting an agent")
                address = stack.enter_context(agent_on(where, settings.export.kubernetes))
                url, shown = address.url, Credentials(key=address.token)
            tell(where, "asking the agent")
            connection = stack.enter_context(closing(Connection(url, shown, holder=holder)))
            held[where] = There(
                name=where, connection=connection, folder=folder / f"there-{number}", settings=settings, tell=tell
            )
        yield {target: held[where] for target, where in places.items()}
