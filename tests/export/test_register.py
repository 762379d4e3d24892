"""Models from elsewhere: what is code-free comes in as it is, what is code only with --trust, through a child."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.export import Dim

from seatrial.errors import ConversionFailed, InvalidSource, NotInRegistry, Untrusted
from seatrial.registry import ModelRef
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial.tensors import Array
from seatrial_export.candidate import CANDIDATES
from seatrial_export.export import Exported, export
from seatrial_export.register import register
from seatrial_export.request import Request
from seatrial_export.samples import varying
from seatrial_serving.engines import open_engine
from seatrial_serving.engines.proof import prove
from tests.commands import Typed, type_seatrial
from tests.export.models import one_row_only
from tests.serving.models import SIGNATURE, linear, linear_onnx

FLOAT = CANDIDATES[:1]


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home, export={"measure_s": 0.1, "threads": 1})


def take_in(source: object, settings: Settings, *, trust: bool = False, examples: Sequence[Path] = ()) -> str:
    return str(register(str(source), name="mine", settings=settings, examples=examples, trust=trust))


def exported(settings: Settings, *, trust: bool = False, name: str = "mine") -> Exported:
    return export(Request(ref=ModelRef(name=name, version="1"), candidates=FLOAT, trust=trust), settings)


def test_an_onnx_file_is_registered_as_it_is_and_exported(settings: Settings, tmp_path: Path) -> None:
    path = linear_onnx(tmp_path / "theirs.onnx")
    assert take_in(path, settings) == "models:/mine/1"
    assert take_in(path, settings) == "models:/mine/2"
    import mlflow.artifacts

    [kept] = Path(mlflow.artifacts.download_artifacts("models:/mine/1", dst_path=str(tmp_path / "kept"))).rglob(
        "*.onnx"
    )
    assert kept.read_bytes() == path.read_bytes()
    bundle = exported(settings).bundles["onnx-cpu"]
    assert bundle.manifest.signature == SIGNATURE
    assert prove(bundle) == 8


def test_an_onnx_file_is_judged_on_the_example_that_it_was_registered_with(settings: Settings, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.ones((300, 4), np.float32) * np.arange(300, dtype=np.float32)[:, None])
    take_in(linear_onnx(tmp_path / "theirs.onnx"), settings, examples=[tmp_path / "rows.npz"])
    report = exported(settings).report
    assert "agreement with the source model on 256 rows" in report.basis, "the others calibrate"
    assert report.notes == ()


def test_weights_beside_an_onnx_file_come_along(settings: Settings, tmp_path: Path) -> None:
    """As the exporter of PyTorch writes models that are not tiny."""
    model = onnx.load(linear_onnx(tmp_path / "small.onnx"))
    onnx.save(model, tmp_path / "split.onnx", save_as_external_data=True, location="split.data", size_threshold=0)
    take_in(tmp_path / "split.onnx", settings)
    (tmp_path / "split.data").unlink()
    assert prove(exported(settings).bundles["onnx-cpu"]) == 8
    with pytest.raises(InvalidSource, match=r"split.onnx is no ONNX model that can be run"):
        take_in(tmp_path / "split.onnx", settings)


def test_axes_without_a_name_are_dynamic_and_fixed_ones_stay_fixed(settings: Settings, tmp_path: Path) -> None:
    model = onnx.load(linear_onnx(tmp_path / "anonymous.onnx"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
    onnx.save(model, tmp_path / "anonymous.onnx")
    take_in(tmp_path / "anonymous.onnx", settings)
    bundle = exported(settings).bundles["onnx-cpu"]
    converted = onnx.load(bundle.file("model.onnx"))
    shapes = [
        [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*converted.graph.input, *converted.graph.output)
    ]
    assert shapes == [["batch", 4], ["batch", 3]]


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.layer(x), dim=-1)


@pytest.mark.slow
def test_a_program_is_registered_and_exported_with_its_own_example(settings: Settings, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 4)
    program = torch.export.export(Linear().eval(), (x,), dynamic_shapes=({0: Dim("rows", max=16)},))
    torch.export.save(program, tmp_path / "theirs.pt2")
    take_in(tmp_path / "theirs.pt2", settings)
    made = exported(settings)
    assert "agreement with the source model on 5 rows" in made.report.basis
    assert made.bundles["onnx-cpu"].manifest.signature.batch is not None
    assert made.bundles["onnx-cpu"].manifest.signature.batch.max == 16
    assert made.report.rows[0].agreement is not None
    assert made.report.rows[0].agreement.max_absolute < 1e-6


FACTORY = """
import torch

class Doubled(torch.nn.Module):
    def forward(self, x):
        return 2 * x

def build():
    return Doubled(), (torch.ones(3, 4),)

def bare():
    return Doubled()

def nothing():
    return "no module"
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "their_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("factories")
def test_a_factory_runs_only_when_it_is_trusted_and_never_in_this_process(settings: Settings) -> None:
    with pytest.raises(
        Untrusted, match=r"their_models:build is Python code: .*seatrial register their_models:build --name"
    ):
        take_in("their_models:build", settings)
    assert take_in("their_models:build", settings, trust=True) == "models:/mine/1"
    assert "their_models" not in sys.modules


@pytest.mark.slow
def test_a_factory_without_an_example_is_given_one_or_told_to_ask_for_it(settings: Settings, factories: Path) -> None:
    with pytest.raises(ConversionFailed, match=r"no example to trace it with; give one with .*--example\) FILE.npz"):
        take_in("their_models:bare", settings, trust=True)
    np.savez(factories / "rows.npz", x=np.ones((2, 4), np.float32))
    assert take_in("their_models:bare", settings, trust=True, examples=[factories / "rows.npz"]) == "models:/mine/1"
    with pytest.raises(ConversionFailed, match=r"gave str, expected a torch.nn.Module"):
        take_in("their_models:nothing", settings, trust=True)


def scripted(path: Path, *, traced: bool) -> Path:
    """A network as TorchScript: rows of any length, added up and put through a layer."""

    class Summing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.layer(x.sum(1)))

    torch.manual_seed(0)
    module = Summing().eval()
    jit: Any = torch.jit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jit.save(jit.trace(module, torch.ones(2, 5, 3)) if traced else jit.script(module), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("traced", [True, False])
def test_torchscript_is_trusted_or_refused_and_examples_say_what_is_dynamic(
    settings: Settings, tmp_path: Path, *, traced: bool
) -> None:
    theirs = scripted(tmp_path / "theirs.pt", traced=traced)
    short, long = tmp_path / "short.npz", tmp_path / "long.npz"
    np.savez(short, x=np.ones((2, 4, 3), np.float32))
    np.savez(long, x=np.ones((2, 7, 3), np.float32))
    with pytest.raises(Untrusted, match=r"theirs.pt is TorchScript: .* --trust"):
        take_in(theirs, settings, examples=[short])
    take_in(theirs, settings, trust=True, examples=[short, long])
    bundle = exported(settings).bundles["onnx-cpu"]
    [spec] = bundle.manifest.signature.inputs
    assert spec.shape == (-1, -1, 3)
    x = np.random.default_rng(0).normal(size=(3, 5, 3)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = torch.jit.load(theirs)(torch.from_numpy(x)).detach().numpy()  # type: ignore[no-untyped-call]
    engine = open_engine(bundle, threads=1)
    [answer] = engine.predict({spec.name: x}).values()
    np.testing.assert_allclose(answer, expected, atol=1e-6)
    engine.close()


@pytest.mark.slow
@pytest.mark.usefixtures("factories")
def test_an_axis_that_varies_and_became_fixed_is_told(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    for size in (4, 7):
        np.savez(tmp_path / f"{size}.npz", x=np.ones((2, size), np.float32))
    with pytest.raises(ConversionFailed, match=r"the module takes inputs of \[2, 4\], .* an axis became fixed"):
        take_in("stubborn:build", settings, trust=True, examples=[tmp_path / "4.npz", tmp_path / "7.npz"])


STUBBORN = """
import torch

class Stubborn(torch.nn.Module):
    def forward(self, x):
        return x * torch.arange(int(x.shape[1]) * len(x.tolist()[0]) // len(x.tolist()[0]), dtype=x.dtype)

def build():
    return Stubborn()
"""


@pytest.mark.slow
def test_a_file_that_is_no_torchscript_is_told(settings: Settings, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, tmp_path / "weights.pt")
    np.savez(tmp_path / "rows.npz", x=np.ones((2, 4), np.float32))
    with pytest.raises(ConversionFailed, match=r"weights.pt is no TorchScript: .* module:factory"):
        take_in(tmp_path / "weights.pt", settings, trust=True, examples=[tmp_path / "rows.npz"])


def test_examples_tell_which_axes_vary() -> None:
    def example(*shape: int) -> dict[str, Array]:
        return {"x": np.ones(shape), "y": np.ones(shape[:1])}

    assert varying([example(2, 3, 4)]) == ((0,), (0,))
    assert varying([example(2, 3, 4), example(2, 5, 4), example(1, 5, 4)]) == ((0, 1), (0,))
    with pytest.raises(InvalidSource, match="give the same inputs"):
        varying([example(2, 3), {"x": np.ones((2, 3))}])
    with pytest.raises(InvalidSource, match="give the same inputs"):
        varying([example(2, 3), example(2, 3, 4)])


def test_examples_that_the_model_does_not_take_are_refused(settings: Settings, tmp_path: Path) -> None:
    path = linear_onnx(tmp_path / "theirs.onnx")
    for columns in (4, 5):
        np.savez(tmp_path / f"{columns}.npz", x=np.ones((3, columns), np.float32))
    take_in(path, settings, examples=[tmp_path / "4.npz"])
    with pytest.raises(InvalidSource, match="the example: "):
        take_in(path, settings, examples=[tmp_path / "4.npz", tmp_path / "5.npz"])


@pytest.fixture
def seatrial(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Typed]:
    return partial(type_seatrial, monkeypatch=monkeypatch, capsys=capsys)


@pytest.mark.usefixtures("home", "factories")
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.onnx", "there is no file nowhere.onnx"),
        ("nowhere.pt", "there is no file nowhere.pt"),
        ("their_models.py", "give FILE.onnx, FILE.pt2, FILE.pt (TorchScript), a Hugging Face folder"),
        ("models:/absent/1", "models:/absent/1 cannot be fetched"),
        ("their_models:absent", "Untrusted"),
    ],
)
def test_what_is_no_model_is_told(source: str, words: str, seatrial: Callable[..., Typed]) -> None:
    typed = seatrial("register", source, "--name", "mine")
    assert typed.code == 1
    assert words in typed.err


def test_a_model_that_does_not_answer_what_its_signature_allows_is_refused(settings: Settings, tmp_path: Path) -> None:
    path = one_row_only(tmp_path / "one.onnx")
    with pytest.raises(InvalidSource, match=r"the source model itself does not answer x\[4, 4\]"):
        take_in(path, settings)
    np.savez(tmp_path / "one.npz", x=np.ones((1, 4), np.float32))
    take_in(path, settings, examples=[tmp_path / "one.npz"])
    with pytest.raises(
        InvalidSource,
        match="export the program so that every input and output has the batch first",
    ):
        exported(settings)


def test_a_file_that_is_no_model_is_told(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(InvalidSource, match=r"text.onnx is no ONNX model that can be run"):
        take_in(tmp_path / "text.onnx", settings)
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises((Untrusted, InvalidSource)):
        take_in(tmp_path / "text.pt2", settings)
    with pytest.raises(NotInRegistry):
        EmbeddedRegistry(settings).resolve(ModelRef(name="mine", version="1"))


# Somebody's model, trained and logged by their own code, which calls its package as we call a folder: `models`

THEIR_NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x):
        return torch.relu(self.layer(x)) @ torch.ones(2, 2)
"""

THEIR_TRAINING = """
import os, sys
import mlflow, numpy as np, torch
sys.path.insert(0, os.getcwd())
from models.net import Net

mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_registry_uri(sys.argv[1])
mlflow.set_experiment(experiment_id=mlflow.create_experiment("theirs", artifact_location=sys.argv[2]))
torch.manual_seed(0)
x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
net = Net()
mlflow.pytorch.log_model(
    net, name="model", registered_model_name="theirs", code_paths=["models"], input_example=x, pip_requirements=["torch"],
    signature=mlflow.models.infer_signature(x, net(torch.from_numpy(x)).detach().numpy()), serialization_format="pickle",
)
np.savez("answers.npz", x=x, y=net(torch.from_numpy(x)).detach().numpy())
"""


@pytest.fixture
def theirs(settings: Settings, tmp_path: Path) -> Path:
    """A model version `theirs/1` that is a pickle of their `models.net.Net`; the folder where they trained it."""
    folder = tmp_path / "their_project"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "__init__.py").touch()
    (folder / "models" / "net.py").write_text(THEIR_NET)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        THEIR_TRAINING,
        settings.tracking_uri,
        (settings.home / "theirs").as_uri(),
    ]
    subprocess.run(
        command, cwd=folder, check=True, capture_output=True, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    )
    return folder


@pytest.mark.slow  # half a minute, most of it for a stranger to log a model
def test_a_pickle_whose_class_lies_in_their_models_package(theirs: Path, settings: Settings) -> None:
    with pytest.raises(Untrusted, match=r"theirs/1 is a pickle: .*run: seatrial export models:/theirs/1 --trust"):
        exported(settings, name="theirs")
    made = exported(settings, name="theirs", trust=True)
    assert "type Net, traced in a child process" in " ".join(made.report.notes)
    assert "models" not in sys.modules
    assert prove(made.bundles["onnx-cpu"]) > 0
    from seatrial_serving.engines import open_engine

    engine = open_engine(made.bundles["onnx-cpu"], threads=1)
    with np.load(theirs / "answers.npz") as answers:
        [name] = [spec.name for spec in engine.signature.inputs]
        [output] = engine.predict({name: answers["x"]}).values()
        np.testing.assert_allclose(output, answers["y"], atol=1e-5)
    engine.close()


@pytest.mark.slow
@pytest.mark.usefixtures("theirs")
def test_a_pickle_of_a_trusted_name_with_samples_and_registered_anew(settings: Settings, tmp_path: Path) -> None:
    trusting = Settings(home=settings.home, export={"measure_s": 0.1, "trusted_models": ("theirs",)})
    rows = np.random.default_rng(1).normal(size=(300, 4)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", rows=rows)
    with_samples = Request(ref=ModelRef(name="theirs", version="1"), candidates=FLOAT, samples=tmp_path / "rows.npz")
    assert "on 256 rows" in export(with_samples, trusting).report.basis
    assert register("models:/theirs/1", name="taken-in", settings=settings, trust=True).version == "1"


def test_linear_is_what_the_small_onnx_file_computes() -> None:
    """What the other tests compare with, written down."""
    assert linear([[1, 0, 0, 0]]).tolist() == [[1.5, -0.5, 2.0]]
