"""Moving an alias back to what it pointed at before. Made for a bad moment: needs neither torch nor data, asks no gate."""

import getpass
from collections.abc import Callable, Sequence
from typing import TypeAlias

from seatrial.errors import NotInRegistry
from seatrial.registry import ModelRef
from seatrial.registry.bundles import fetch_bundle
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial_promotion.entry import Act, Entry, Verdict, now
from seatrial_promotion.ledger import Ledger

DEFAULT_ALIAS = "champion"

Tell: TypeAlias = Callable[[str], None]


def rollback(
    name: str,
    settings: Settings,
    *,
    alias: str = DEFAULT_ALIAS,
    reason: str = "",
    by: str = "",
    tell: Tell = lambda _: None,
) -> Entry:
    """Point the alias back at what it pointed at before the last promotion that moved it. No gate: it has served before.

    Called again, it goes back one promotion further. Raises `NotInRegistry` where there is nothing to go back to.
    """
    registry = EmbeddedRegistry(settings)
    ledger = Ledger(registry)
    settle(ledger, name, tell)
    here = ledger.target(name, alias)
    before = _served_before(ledger.entries(name), alias=alias, here=here)
    if not before:
        raise NotInRegistry(
            f"the ledger knows no version that {name}@{alias} pointed at before {here or 'now'}; "
            f"`seatrial history {name}` shows what it knows, `seatrial promote` moves the alias forward"
        )
    version = registry.resolve(ModelRef(name=name, version=before))
    bundle = fetch_bundle(registry, version, target=settings.registry.target, store=settings.bundles)
    bundle.verify()
    entry = ledger.append(
        Entry(
            act=Act.ROLLBACK,
            model=name,
            alias=alias,
            before=here,
            after=before,
            bundle=bundle.digest,
            by=by or getpass.getuser(),
            at=now(),
            reason=reason,
        )
    )
    registry.client.set_registered_model_alias(name, alias, before)
    return ledger.close(entry, Verdict.DONE)


def _served_before(entries: Sequence[Entry], *, alias: str, here: str) -> str:
    """Walk the moves of the alias: a promotion goes one step on, a rollback one step back."""
    path: list[str] = []
    for entry in entries:
        if entry.alias != alias or entry.verdict is not Verdict.DONE:
            continue
        if entry.act is Act.PROMOTE:
            if not path and entry.before:
                path.append(entry.before)
            path.append(entry.after)
        elif path:
            path.pop()
    if path and path[-1] != here:  # moved by other hands: back to where the ledger left it
        return path[-1]
    return path[-2] if len(path) > 1 else ""


def settle(ledger: Ledger, name: str, tell: Tell) -> None:
    """Finish what a dead process left open, and tell of it."""
    for entry in ledger.settle(name):
        tell(f"settled: the {entry.act} of {entry.at} to version {entry.after} was cut off and is {entry.verdict}")
