"""Schemathesis over our own OpenAPI document: whatever it makes of the schemas, right or wrong, is answered as described."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.servers import Server, serving
from tests.serving.models import EncoderBundle, LinearBundle, echo_onnx, pair_onnx

SOME, MANY = 2, 150
CHECKS: Any = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("schemathesis")
    bare = (pair_onnx(place / "pair.onnx"), echo_onnx(place / "echo.onnx"))
    environment = {"SEATRIAL_SERVING__ENGINES__COUNT": "1", "SEATRIAL_SERVING__DOORS__MODEL": "linear"}
    bundles = (LinearBundle().write(place).path, EncoderBundle().write(place).path)
    with serving(*bundles, *bare, place=place / "server", environment=environment) as running:
        engines = {engine.pid for engine in running.engines()}
        yield running
        assert {engine.pid for engine in running.engines()} == engines
        assert "Traceback" not in running.err.read_text()


@pytest.mark.parametrize(
    "cases", [SOME, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=["some", "many"]
)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: str(mode.value))
def test_whatever_the_document_allows_or_forbids_is_answered_as_it_says(
    server: Server, mode: GenerationMode, cases: int
) -> None:
    document = schemathesis.openapi.from_url(server.url("/openapi.json"))
    asked = 0
    for found in document.get_all_operations():
        assert isinstance(found, Ok), found
        with suppress(Unsatisfiable):  # nothing can be said wrong where nothing is said
            ask(found.ok(), mode, cases)
            asked += 1
    assert asked > 25


def ask(operation: Any, mode: GenerationMode, cases: int) -> None:
    @settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def holds(case: Any) -> None:
        answer = case.call()
        if answer.status_code == 504 and any(name.lower() == "inference-timeout-ms" for name in case.headers or ()):
            return  # less time than it takes may be asked for
        case.validate_response(answer, checks=CHECKS)

    holds()
