"""Grants written as `seatrial keys` writes them, without a process for each."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from seatrial_serving.access import grants


class Made(NamedTuple):
    id: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


def grant(
    file: Path,
    name: str = "app",
    *,
    acts: Sequence[str] = ("infer", "read"),
    models: Sequence[str] = ("*",),
    lasts_s: float | None = None,
    requests_per_s: float | None = None,
    rows_per_s: float | None = None,
) -> Made:
    made, key = grants.grant(
        name, acts=acts, models=models, lasts_s=lasts_s, requests_per_s=requests_per_s, rows_per_s=rows_per_s
    )
    grants.add(file, made)
    return Made(made.id, key)
