"""What clients saw, held against what the server has counted: the two must be equal.

A key is a series, a protocol and a way to end. A client that leaves with its request sent does not know whether it was
answered first: such a request is `LEFT`, and the server counts it as answered or as abandoned.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from seatrial_monitoring.series import Closing, Outcome, Protocol
from tests.servers import Server

LEFT = "left"


class Key(NamedTuple):
    series: str
    protocol: str
    end: str = ""


def ended(outcome: str, protocol: Protocol = Protocol.REST) -> Key:
    return Key("requests", protocol, outcome)


def closed(reason: Closing, protocol: Protocol = Protocol.REST) -> Key:
    return Key("closed_connections", protocol, reason)


def unknown(protocol: Protocol = Protocol.REST) -> Key:
    return Key("unknown_model_requests", protocol)


@dataclass(slots=True)
class Ledger:
    seen: Counter[Key] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """Of clients that did nothing wrong, and refusals of another kind than they should have been."""
    took_s: list[float] = field(default_factory=list)
    """Of answers since somebody took the list."""
    answered: int = 0
    began: float = field(default_factory=time.monotonic)

    def note(self, keys: tuple[Key, ...]) -> None:
        self.seen.update(keys)

    def answer(self, key: Key, took_s: float) -> None:
        self.seen[key] += 1
        self.answered += 1
        self.took_s.append(took_s)

    def fail(self, who: str, error: BaseException) -> None:
        self.failures.append(f"after {time.monotonic() - self.began:.1f} s, {who}: {type(error).__name__}: {error}")

    def differences(self, counted: Counter[Key]) -> list[str]:
        """Where `counted` by the server is not what was seen."""
        seen, found = Counter(self.seen), []
        for protocol in Protocol:
            left = seen.pop(ended(LEFT, protocol), 0)
            answered_first = counted[ended(Outcome.OK, protocol)] - seen[ended(Outcome.OK, protocol)]
            if 0 <= answered_first <= left:
                seen[ended(Outcome.OK, protocol)] += answered_first
                seen[ended(Outcome.ABANDONED, protocol)] += left - answered_first
            elif left:
                found.append(f"{protocol}: of {left} requests whose client left, {answered_first} were answered")
        return found + [
            f"{' '.join(key)}: clients saw {seen[key]}, the server counted {counted[key]}"
            for key in sorted({*seen, *counted})
            if seen[key] != counted[key]
        ]


def count(server: Server) -> Counter[Key]:
    """What the server has counted since it started."""
    metrics = server.metrics()
    counted: Counter[Key] = Counter()
    keys = [ended(outcome, protocol) for protocol in Protocol for outcome in Outcome]
    keys += [closed(reason, protocol) for protocol in (Protocol.REST, Protocol.GRPC) for reason in Closing]
    keys += [unknown(protocol) for protocol in Protocol]
    for key in keys:
        name, wanted = (
            f"seatrial_{key.series}_total{{",
            (f'protocol="{key.protocol}"', f'="{key.end}"' if key.end else ""),
        )
        counted[key] = round(
            sum(
                value
                for sample, value in metrics.items()
                if sample.startswith(name) and all(w in sample for w in wanted)
            )
        )
    return +counted
