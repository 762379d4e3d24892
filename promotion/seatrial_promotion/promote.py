"""Moving an alias: through the gates, into the ledger, and only then. The alias is the deployment: servers follow it.

A process that dies on the way leaves the alias where it was, or where it should be, and an open entry in the ledger that the
next call settles.
"""

import getpass
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from seatrial.errors import DataMissing, GateFailed, InvalidRecipe, InvalidSettings, NotInRegistry
from seatrial.registry import ModelRef, ModelVersion
from seatrial.registry.bundles import fetch_bundle
from seatrial.registry.embedded import EmbeddedRegistry, download
from seatrial.settings import Settings
from seatrial_promotion.entry import Act, Entry, GateResult, Verdict, now
from seatrial_promotion.gates import Contender, bundle_gate, quality_gate
from seatrial_promotion.ledger import Ledger
from seatrial_promotion.rollback import DEFAULT_ALIAS, Tell, settle
from seatrial_training.data import Split, load_dataset
from seatrial_training.retrainable import NotRetrainable, read_retrainable

GATES = ("bundle", "quality")
DEFAULT_MARGIN = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What somebody wants promoted. `waivers` maps a gate to the reason for going on although it says no."""

    name: str
    version: str
    alias: str = DEFAULT_ALIAS
    margin: float = DEFAULT_MARGIN
    waivers: Mapping[str, str] = field(default_factory=dict)
    by: str = field(default_factory=getpass.getuser)
    reason: str = ""

    def __post_init__(self) -> None:
        for gate in self.waivers:
            if gate not in GATES:
                raise InvalidSettings(f"there is no gate '{gate}' to waive; the gates are {', '.join(GATES)}")


def promote(promotion: Promotion, settings: Settings, *, tell: Tell = lambda _: None) -> Entry:
    """Run the gates, write evidence and verdict to the ledger, then point the alias at the version.

    Servers that follow the alias keep serving the old version until the new one is warm. Raises `GateFailed`, with the
    refusal in the ledger and the alias where it was.
    """
    registry = EmbeddedRegistry(settings)
    ledger = Ledger(registry)
    settle(ledger, promotion.name, tell)
    if (already := _already(ledger, promotion)) is not None:
        tell(f"@{promotion.alias} points at version {promotion.version} already, by the promotion of {already.at}")
        return already
    contender = _contender(registry, ModelRef(name=promotion.name, version=promotion.version), settings)
    champion = _champion(registry, promotion, settings)
    tell("gate: bundle")
    results = [bundle_gate(contender)]
    tell("gate: quality")
    if results[0].passed:
        held_out = _held_out(contender.version, settings)
        results.append(quality_gate(contender, champion, held_out, margin=promotion.margin))
    # A person may know better than a gate, but not what a model answers that was never run.
    waivers = promotion.waivers if contender.bundle.manifest.golden else {}
    results = [result.waived(waivers.get(result.gate, "")) for result in results]
    return _move(registry, ledger, promotion, contender, tuple(results))


def _already(ledger: Ledger, promotion: Promotion) -> Entry | None:
    """The entry that put the alias where it is wanted, if it is there and the last entry of the ledger says why."""
    entries = [e for e in ledger.entries(promotion.name) if e.alias == promotion.alias and e.verdict is Verdict.DONE]
    if not entries or ledger.target(promotion.name, promotion.alias) != promotion.version:
        return None
    return entries[-1] if entries[-1].after == promotion.version else None


def _move(
    registry: EmbeddedRegistry,
    ledger: Ledger,
    promotion: Promotion,
    contender: Contender,
    results: tuple[GateResult, ...],
) -> Entry:
    shut = [result for result in results if not result.open]
    entry = ledger.append(
        Entry(
            act=Act.PROMOTE,
            model=promotion.name,
            alias=promotion.alias,
            before=ledger.target(promotion.name, promotion.alias),
            after=promotion.version,
            bundle=contender.bundle.digest,
            by=promotion.by,
            at=now(),
            gates=results,
            reason=promotion.reason,
            verdict=Verdict.REFUSED if shut else Verdict.OPEN,
        )
    )
    if shut:
        refusals = "\n".join(f"  {result.gate}: {result.reason}" for result in shut)
        raise GateFailed(f"{contender.version} was not promoted; @{promotion.alias} stays where it is\n{refusals}")
    registry.client.set_registered_model_alias(promotion.name, promotion.alias, promotion.version)
    return ledger.close(entry, Verdict.DONE)


def _contender(registry: EmbeddedRegistry, ref: ModelRef, settings: Settings) -> Contender:
    version = registry.resolve(ref)
    return Contender(
        version=version,
        bundle=fetch_bundle(registry, version, target=settings.registry.target, store=settings.bundles),
    )


def _champion(registry: EmbeddedRegistry, promotion: Promotion, settings: Settings) -> Contender | None:
    """Whoever has the alias now; None where nobody has, or it is the contender itself."""
    try:
        version = registry.resolve(ModelRef(name=promotion.name, alias=promotion.alias))
    except NotInRegistry:
        return None
    if version.version == promotion.version:
        return None
    return _contender(registry, ModelRef(name=version.name, version=version.version), settings)


def _held_out(version: ModelVersion, settings: Settings) -> Split | str:
    """The test rows of the data that the version's recipe names; a sentence where there are none."""
    with TemporaryDirectory() as folder:
        try:
            retrainable = read_retrainable(download(version, Path(folder) / "model"))
            if isinstance(retrainable, NotRetrainable):
                return f"{version} came without labelled data"
            return load_dataset(retrainable.recipe.data, settings).test
        except (DataMissing, InvalidRecipe, NotInRegistry) as error:
            return f"there is no labelled data for it here ({error})"
