"""The same bundles in three runtimes, the same answers: a model whose answers are known to the last bit, and a real one."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pytest
import tritonclient.http as triton

from seatrial.bundle import Bundle
from seatrial.protocol import Tensor
from seatrial.tensors import Array
from tests.digits import ExportedDigits
from tests.servers import serving
from tests.serving.models import LinearBundle, linear
from tests.serving.runtimes import serving_with, triton_environment

pytestmark = pytest.mark.xdist_group("triton")


@dataclass(frozen=True)
class Runtimes:
    bundles: dict[str, Bundle]
    addresses: dict[str, dict[str, str]]
    """By model, then by runtime; a Bento holds one bundle, the other two runtimes both."""


@pytest.fixture(scope="module")
def runtimes(tmp_path_factory: pytest.TempPathFactory, exported_digits: ExportedDigits) -> Iterator[Runtimes]:
    triton_environment()
    place = tmp_path_factory.mktemp("three")
    bundles = (LinearBundle(version="2").write(place / "store"), exported_digits.bundle)
    paths = [bundle.path for bundle in bundles]
    by_name = {bundle.manifest.model.name: bundle for bundle in bundles}
    with ExitStack() as stack:
        embedded = stack.enter_context(serving(*paths, place=place / "embedded")).http
        nvidia = stack.enter_context(serving_with("triton", *paths, place=place / "triton")).http
        bentos = {
            name: stack.enter_context(serving_with("bento", bundle.path, place=place / f"bento-{name}")).http
            for name, bundle in by_name.items()
        }
        yield Runtimes(
            by_name, {name: {"embedded": embedded, "triton": nvidia, "bentoml": bentos[name]} for name in by_name}
        )


def ask(address: str, model: str, inputs: Sequence[Tensor], outputs: Sequence[str], *, binary: bool) -> list[Array]:
    sent = []
    for name, datatype, array in inputs:
        sent.append(triton.InferInput(name, list(array.shape), datatype))
        sent[-1].set_data_from_numpy(array, binary_data=binary)
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in outputs]
    with triton.InferenceServerClient(address) as client:
        answer = client.infer(model, sent, outputs=wanted)
        return [answer.as_numpy(name) for name in outputs]


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
@pytest.mark.parametrize("binary", [True, False])
def test_the_same_request_has_the_same_answer_everywhere(runtimes: Runtimes, rows: int, binary: bool) -> None:
    x = np.random.default_rng(rows).integers(-50, 50, (rows, 4)).astype(np.float32)
    tensor = Tensor("x", runtimes.bundles["linear"].manifest.signature.inputs[0].datatype, x)
    answers = {
        name: ask(address, "linear", [tensor], ["y"], binary=binary)[0].tolist()
        for name, address in runtimes.addresses["linear"].items()
    }
    assert answers == dict.fromkeys(runtimes.addresses["linear"], linear(x).tolist())


@pytest.mark.parametrize("model", ["linear", "digits-cnn"])
@pytest.mark.parametrize("binary", [True, False])
def test_the_golden_requests_are_answered_everywhere_as_recorded(runtimes: Runtimes, model: str, binary: bool) -> None:
    bundle = runtimes.bundles[model]
    bounds = bundle.manifest.tolerance.rerun
    assert bundle.manifest.golden
    for golden in bundle.golden():
        names = [tensor.name for tensor in golden.rerun]
        for address in runtimes.addresses[model].values():
            answers = ask(address, model, golden.request.inputs, names, binary=binary)
            for recorded, answer in zip(golden.rerun, answers, strict=True):
                bound = bounds[recorded.name]
                np.testing.assert_allclose(answer, recorded.array, atol=bound.absolute, rtol=bound.relative)
                assert answer.argmax(axis=-1).tolist() == recorded.array.argmax(axis=-1).tolist()


@pytest.mark.parametrize("model", ["linear", "digits-cnn"])
def test_metadata_agree_on_the_signature(runtimes: Runtimes, model: str) -> None:
    described = {}
    for name, address in runtimes.addresses[model].items():
        with triton.InferenceServerClient(address) as client:
            metadata = client.get_model_metadata(model)
        described[name] = {key: metadata[key] for key in ("name", "versions", "inputs", "outputs")}
    assert described["embedded"] == described["bentoml"] == described["triton"]
