"""The page at `/docs`: one HTML file of ours, without anything from elsewhere, and the policy that browsers hold it to.

Nothing of a model is written into it here. Its script reads `/openapi.json` and shows names and labels, which come from
whoever made the bundle, as text and never as markup.
"""

import base64
import hashlib
import re
from pathlib import Path

TEMPLATE = Path(__file__).with_name("page.html")
SCRIPT = Path(__file__).with_name("page.js")
MARK = "/* page.js */"


def load() -> tuple[str, dict[str, str]]:
    """The page and its headers: its own script and style run, by their digests, and it talks to this server alone."""
    html = TEMPLATE.read_text(encoding="utf-8").replace(MARK, SCRIPT.read_text(encoding="utf-8"))
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_digest(html, 'script')}",
            f"style-src {_digest(html, 'style')}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return html, {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }


def _digest(html: str, element: str) -> str:
    found = re.search(f"<{element}>(.*?)</{element}>", html, re.DOTALL)
    assert found is not None, f"{TEMPLATE} has no <{element}>: this is a bug"
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
