"""One bundle, three runtimes, the same answers."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pytest
import tritonclient.http as triton

from seatrial.bundle import Bundle
from tests.servers import serving
from tests.serving.models import LinearBundle, linear
from tests.serving.runtimes import serving_with, triton_environment

pytestmark = pytest.mark.xdist_group("triton")


@dataclass(frozen=True)
class Runtimes:
    bundle: Bundle
    addresses: dict[str, str]


@pytest.fixture(scope="module")
def runtimes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtimes]:
    triton_environment()
    place = tmp_path_factory.mktemp("three")
    bundle = LinearBundle(version="2").write(place / "store")
    with ExitStack() as stack:
        yield Runtimes(
            bundle,
            {
                "embedded": stack.enter_context(serving(bundle.path, place=place / "embedded")).http,
                "bentoml": stack.enter_context(serving_with("bento", bundle.path, place=place / "bentoml")).http,
                "triton": stack.enter_context(serving_with("triton", bundle.path, place=place / "triton")).http,
            },
        )


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
@pytest.mark.parametrize("binary", [True, False])
def test_the_same_request_has_the_same_answer_everywhere(runtimes: Runtimes, rows: int, binary: bool) -> None:
    x = np.random.default_rng(rows).integers(-50, 50, (rows, 4)).astype(np.float32)
    answers = {}
    for name, address in runtimes.addresses.items():
        tensor = triton.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x, binary_data=binary)
        with triton.InferenceServerClient(address) as client:
            wanted = [triton.InferRequestedOutput("y", binary_data=binary)]
            answers[name] = (
                client.infer("linear", [tensor], outputs=wanted, request_id=str(rows)).as_numpy("y").tolist()
            )
    assert answers == dict.fromkeys(runtimes.addresses, linear(x).tolist())


def test_the_golden_requests_are_answered_everywhere_as_recorded(runtimes: Runtimes) -> None:
    [golden] = runtimes.bundle.golden()
    for name, address in runtimes.addresses.items():
        inputs = []
        for tensor in golden.request.inputs:
            inputs.append(triton.InferInput(tensor.name, list(tensor.array.shape), tensor.datatype))
            inputs[-1].set_data_from_numpy(tensor.array)
        with triton.InferenceServerClient(address) as client:
            answer = client.infer("linear", inputs)
        for recorded in golden.rerun:
            assert answer.as_numpy(recorded.name).tolist() == recorded.array.tolist(), name


def test_metadata_agree_on_the_signature(runtimes: Runtimes) -> None:
    described = {}
    for name, address in runtimes.addresses.items():
        with triton.InferenceServerClient(address) as client:
            metadata = client.get_model_metadata("linear")
        described[name] = {key: metadata[key] for key in ("name", "versions", "inputs", "outputs")}
    assert described["embedded"] == described["bentoml"] == described["triton"]
