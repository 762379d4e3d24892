"""`seatrial` as it is typed, in this process: the same `main`, without paying for the imports again."""

import sys
from dataclasses import dataclass
from typing import Any

import pytest

from seatrial.cli import main


@dataclass(frozen=True)
class Typed:
    code: int
    out: str
    err: str


def type_seatrial(*arguments: object, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Typed:
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["seatrial", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    code = ended.value.code
    return Typed(code if isinstance(code, int) else int(code is not None), said.out, said.err)
