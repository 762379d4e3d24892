"""What serves now: alias, version, bundle, and what running servers answer with; and where these disagree."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from seatrial.credentials import Credentials
from seatrial.errors import NotReady
from seatrial.registry import BUNDLE_TAG, ModelRef, ModelVersion
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial_promotion.entry import Entry, Verdict
from seatrial_promotion.ledger import Ledger

ASK_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server says that it serves; `error` where it does not."""

    server: str
    version: str = ""
    digest: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One alias. `entry` is the last in the ledger that moved it; `warnings` are sentences on what disagrees."""

    version: ModelVersion
    alias: str
    bundles: dict[str, str]
    entry: Entry | None
    answers: tuple[Answer, ...]
    warnings: tuple[str, ...]


def status(settings: Settings, *, servers: Sequence[str] = ()) -> list[Standing]:
    """Every alias of every registered model, in the order of their names."""
    registry = EmbeddedRegistry(settings)
    ledger = Ledger(registry)
    standings = []
    for model in registry.client.search_registered_models(max_results=1000):
        entries = ledger.entries(model.name) if model.aliases else []
        for alias in sorted(model.aliases):
            version = registry.resolve(ModelRef(name=model.name, alias=alias))
            answers = tuple(ask(server, model.name, settings.credentials) for server in servers)
            standings.append(_standing(version, alias, entries, answers, target=settings.registry.target))
    return standings


def _standing(
    version: ModelVersion, alias: str, entries: Sequence[Entry], answers: tuple[Answer, ...], *, target: str
) -> Standing:
    moves = [entry for entry in entries if entry.alias == alias and entry.verdict is Verdict.DONE]
    entry = moves[-1] if moves else None
    bundles = {
        tag.removeprefix(BUNDLE_TAG): digest for tag, digest in version.tags.items() if tag.startswith(BUNDLE_TAG)
    }
    warnings = []
    if entry is None:
        warnings.append("the ledger has no entry for it: the alias was set by other means")
    elif entry.after != version.version:
        warnings.append(f"the ledger says version {entry.after}: the alias was moved by other means")
    if target not in bundles:
        warnings.append(f"there is no bundle for {target}; build one with: seatrial export {version}")
    warnings += [
        f"{answer.server} answers with version {answer.version}"
        for answer in answers
        if answer.version and answer.version != version.version
    ]
    return Standing(
        version=version, alias=alias, bundles=bundles, entry=entry, answers=answers, warnings=tuple(warnings)
    )


def ask(server: str, model: str, shown: Credentials) -> Answer:
    """Ask `server`, the address of a v2 REST endpoint, which version of `model` it answers with by default."""
    address = server if "://" in server else f"http://{server}"
    url = f"{address.rstrip('/')}/v2/models/{model}"
    try:
        answer = httpx.get(url, timeout=ASK_S, headers=shown.headers, verify=shown.trusting())
        answer.raise_for_status()
        properties: dict[str, Any] = answer.json().get("properties", {})
    except (httpx.HTTPError, ValueError) as error:
        return Answer(server=server, error=str(error) or type(error).__name__)
    return Answer(server=server, version=properties.get("version", ""), digest=properties.get("digest", ""))


def wait_for(
    servers: Sequence[str],
    model: str,
    version: str,
    *,
    shown: Credentials,
    within_s: float,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Ask until every server answers with `version`. Raises `NotReady`, naming those that do not, after `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        answers = [ask(server, model, shown) for server in servers]
        behind = [answer for answer in answers if answer.version != version]
        if not behind:
            return
        if time.monotonic() > deadline:
            who = "; ".join(f"{each.server}: {each.error or 'version ' + each.version}" for each in behind)
            raise NotReady(f"not every server answers with {model}/{version} after {within_s:g} s: {who}")
        pause(0.2)
