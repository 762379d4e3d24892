"""Markdown tables, and their places in `benchmarks/README.md`."""

import re
from collections.abc import Sequence
from pathlib import Path

README = Path(__file__).parent / "README.md"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_section(name: str, text: str) -> None:
    """Replace what stands between the comments that mark the section."""
    page = README.read_text()
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    changed, found = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}{text}{end}", page, flags=re.DOTALL)
    assert found == 1, f"{README} has no section {name}: this is a bug"
    README.write_text(changed)
