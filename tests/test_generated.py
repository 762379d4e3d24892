"""What is generated from the code and committed is what the code would generate now."""

import pytest

from docs.generate import GENERATED, ROOT


@pytest.mark.parametrize("path", GENERATED)
def test_generated_files_are_current(path: str) -> None:
    assert (ROOT / path).read_text() == GENERATED[path](), "run: make docs"
