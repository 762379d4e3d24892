"""What is tuned: some settings of serving, and the values that are tried for each.

Knows nothing of servers or measurements.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import ValidationError

from seatrial.errors import InvalidSettings
from seatrial.settings import Serving

Value: TypeAlias = int | float | None
ENGINES, THREADS = "engines.count", "engines.threads"
GATEWAYS, BATCH, TOKENS, DELAY = "gateways", "batching.max_size", "batching.max_tokens", "batching.max_delay_ms"
NAMES = (GATEWAYS, ENGINES, THREADS, BATCH, TOKENS, DELAY)
LARGEST_BATCH, MOST_TOKENS = 256, 4096
DELAYS_MS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Configuration:
    """Values of tuned settings, by their names below `serving`; None leaves the choice to the server."""

    values: tuple[tuple[str, Value], ...]

    @staticmethod
    def of(serving: Serving) -> "Configuration":
        return Configuration(tuple((name, _read(serving, name)) for name in NAMES))

    @staticmethod
    def parse(settings: Mapping[str, Value]) -> "Configuration":
        """Raises `InvalidSettings` for a name that is not tuned."""
        if unknown := settings.keys() - set(NAMES):
            raise InvalidSettings(f"there are no settings {sorted(unknown)} to tune; there are {list(NAMES)}")
        return Configuration(tuple(settings.items()))

    def __getitem__(self, name: str) -> Value:
        return self.settings[name]

    @property
    def settings(self) -> dict[str, Value]:
        return dict(self.values)

    def changed(self, name: str, value: Value) -> "Configuration":
        return Configuration(tuple((each, value if each == name else kept) for each, kept in self.values))

    def beside(self, other: "Configuration") -> str:
        """The settings in which it differs from `other`, for people."""
        differing = [f"{name}={_word(value)}" for name, value in self.values if other[name] != value]
        return " ".join(differing) or "as it is set now"

    def within(self, serving: Serving) -> Serving:
        """`serving` with these values. Raises `InvalidSettings` for one that cannot be."""
        changed = serving.model_dump()
        for name, value in self.values:
            *groups, setting = name.split(".")
            place = changed
            for group in groups:
                place = place[group]
            place[setting] = value
        batching = changed["batching"]
        batching["preferred_sizes"] = [size for size in batching["preferred_sizes"] if size <= batching["max_size"]]
        try:
            return Serving.model_validate(changed)
        except ValidationError as error:
            raise InvalidSettings(f"{self.settings} cannot be served with: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A setting and its values, from the least on; of one that is not `ordered`, a value says nothing about the next."""

    name: str
    values: tuple[Value, ...]
    ordered: bool = True

    def ways(self, value: Value) -> list[Sequence[Value]]:
        """What to try from `value` on: each way as long as it does no harm."""
        others = [each for each in self.values if each != value]
        if not self.ordered or value is None:
            return [[each] for each in others]
        below = [each for each in others if each is not None and each < value]
        above = [each for each in others if each is not None and each > value]
        return [above, below[::-1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What decides which values make sense."""

    cores: int
    most_rows: int = LARGEST_BATCH
    padded: bool = False
    """Whether rows of different lengths share batches, which are then formed by tokens."""
    p99_ms: float

    def knobs(self) -> tuple[Knob, ...]:
        shares = _powers_of_two(self.cores)
        knobs = (
            Knob(name=GATEWAYS, values=shares),
            Knob(name=ENGINES, values=shares),
            Knob(name=THREADS, values=(None, *shares), ordered=False),
            Knob(name=BATCH, values=_powers_of_two(min(self.most_rows, LARGEST_BATCH))),
            Knob(name=TOKENS, values=_powers_of_two(MOST_TOKENS)[7:] if self.padded else ()),
            Knob(name=DELAY, values=tuple(delay for delay in DELAYS_MS if delay < self.p99_ms / 2)),
        )
        return tuple(knob for knob in knobs if len(knob.values) > 1)


def _powers_of_two(most: int) -> tuple[int, ...]:
    """Up to `most`, which is among them."""
    return (*(2**power for power in range(most.bit_length()) if 2**power < most), most)


def _read(serving: Serving, name: str) -> Value:
    value: Any = serving
    for part in name.split("."):
        value = getattr(value, part)
    assert isinstance(value, int | float | None), f"the setting {name} is no number: this is a bug"
    return value


def _word(value: Value) -> str:
    return "auto" if value is None else f"{value:g}"
