"""What somebody probably meant when they wrote a name that does not exist."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str) -> str:
    """The end of a sentence that refuses `name`: the closest of `known`, or `otherwise` where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; {otherwise}"
