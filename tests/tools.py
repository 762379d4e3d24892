"""Tools that tests need and that a machine may lack: absent, a test skips with the reason; in CI it fails."""

import os
import shutil

import pytest


def tool(name: str) -> str:
    """The path of the program `name`."""
    path = shutil.which(name)
    if path is None:
        absent(f"{name} is not installed")
    assert path is not None
    return path


def absent(reason: str) -> None:
    """Skip the test for `reason`; where CI is set, nothing may be absent."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and in CI nothing may be")
    pytest.skip(reason)
