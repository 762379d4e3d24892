"""What a caller may use a second, and what it has left of that.

A token bucket: it holds what `burst_s` seconds bring, and never more; whoever finds it empty is told when to come back.
"""

import math
import time
from collections.abc import Callable

from seatrial.errors import QuotaExceeded
from seatrial.settings import Quota

Clock = Callable[[], float]


class Bucket:
    def __init__(self, per_s: float, *, burst_s: float, clock: Clock) -> None:
        self._per_s, self._most, self._clock = per_s, max(1.0, per_s * burst_s), clock
        self._left, self._at = self._most, clock()

    def wait_s(self) -> float:
        """How long until one is left; 0 for now."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._per_s)
        self._at = now
        return max(0.0, (1 - self._left) / self._per_s)

    def take(self, amount: int) -> None:
        """Also more than is left: the rest is owed, and waited for."""
        self._left -= amount


class Allowance:
    """The buckets of one caller, in one of so many `gateways`."""

    def __init__(self, quota: Quota, *, gateways: int = 1, clock: Clock = time.monotonic) -> None:
        self._requests = _bucket(quota.requests_per_s, quota, gateways, clock)
        self._rows = _bucket(quota.rows_per_s, quota, gateways, clock)

    @property
    def is_open(self) -> bool:
        """Whether a request would be taken now."""
        return not self._wait_s()

    def take_request(self, caller: str) -> None:
        """Raises `QuotaExceeded`, and then takes nothing."""
        wait_s = self._wait_s()
        if wait_s:
            raise QuotaExceeded(
                f"'{caller}' has used up its quota; there is more in {wait_s:.3g} s", retry_after_s=math.ceil(wait_s)
            )
        if self._requests is not None:
            self._requests.take(1)

    def take_rows(self, rows: int) -> None:
        """Of a request that was taken."""
        if self._rows is not None:
            self._rows.take(rows)

    def _wait_s(self) -> float:
        return max((bucket.wait_s() for bucket in (self._requests, self._rows) if bucket is not None), default=0.0)


def _bucket(per_s: float | None, quota: Quota, gateways: int, clock: Clock) -> Bucket | None:
    return None if per_s is None else Bucket(per_s / gateways, burst_s=quota.burst_s, clock=clock)
