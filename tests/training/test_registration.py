"""What a training leaves in MLflow: everything that somebody will want to know, and nothing that must be unpickled."""

import io
import json
import zipfile
from pathlib import Path

import mlflow
import mlflow.pytorch
import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer

from seatrial.registry.embedded import connect
from seatrial.settings import Settings
from seatrial_models.mlp import Perceptron
from seatrial_training.data import clinc150
from seatrial_training.fit import build_module
from seatrial_training.recipe import load_recipe
from seatrial_training.registration import register
from seatrial_training.retrainable import NotRetrainable, Retrainable, read_retrainable
from seatrial_training.run import open_run
from seatrial_training.train import train_in
from tests.training.conftest import Whole

THINGS, WHENS = ("door", "window", "gate", "box"), ("now", "today", "later")
TINY = "{vocabulary: 60, max_tokens: 32, classes: 3, width: 16, depth: 1, heads: 2, feed_forward: 16}"

pytestmark = pytest.mark.xdist_group("training")


@pytest.fixture
def client(whole: Whole) -> MlflowClient:
    """Also makes the registry of `whole` the default of MLflow's functions."""
    return connect(whole.settings)


@pytest.fixture
def run(whole: Whole, client: MlflowClient) -> MlflowRun:
    return client.get_run(whole.registered.version.run_id)


@pytest.fixture
def model(whole: Whole, client: MlflowClient) -> Path:  # noqa: ARG001 - `client` makes its registry the default
    """The directory of the registered model, as anybody gets it."""
    return Path(mlflow.artifacts.download_artifacts(str(whole.registered.version)))


def artifact(client: MlflowClient, run: MlflowRun, name: str) -> bytes:
    return Path(client.download_artifacts(run.info.run_id, name)).read_bytes()


def test_the_version_points_at_its_run_and_its_logged_model(whole: Whole, client: MlflowClient) -> None:
    version = client.get_model_version("digits-mlp", "1")
    assert str(whole.registered.version) == "models:/digits-mlp/1"
    assert version.run_id == whole.registered.version.run_id
    assert str(version.source).startswith("models:/m-")
    assert version.aliases == []


def test_the_run_has_ended_and_its_place_is_gone(whole: Whole, run: MlflowRun) -> None:
    assert run.info.status == "FINISHED"
    assert [path for path in (whole.settings.home / "runs").iterdir() if path.is_dir()] == []
    assert whole.told == ("trained 3 epochs; logging and registering",)


def test_every_value_of_the_recipe_is_a_parameter(whole: Whole, run: MlflowRun) -> None:
    params = run.data.params
    assert params["optimizer.learning_rate"] == "0.003"
    assert params["architecture.config.hidden"] == "[16]"
    assert params["precision"] == "auto"
    assert params["seed"] == "0"
    assert params["epochs"] == "3"
    flat = {name.partition(".")[0] for name in params}
    assert flat == set(whole.registered.trained.recipe.model_dump())


def test_every_epoch_is_measured_once(whole: Whole, client: MlflowClient, run: MlflowRun) -> None:
    for name in ("training_loss", "validation_loss", "validation_accuracy", "learning_rate"):
        history = client.get_metric_history(run.info.run_id, name)
        assert [metric.step for metric in history] == [1, 2, 3]
        assert [metric.value for metric in history] == [
            epoch.metrics[name] for epoch in whole.registered.trained.epochs
        ]


def test_the_score_is_on_the_test_split_and_tied_to_the_model_and_the_data(
    whole: Whole, client: MlflowClient, run: MlflowRun
) -> None:
    trained = whole.registered.trained
    assert run.data.metrics["test_accuracy"] == trained.score.value == trained.score.correct.mean()
    assert trained.score.rows == len(trained.dataset.test)
    [logged] = client.search_logged_models([run.info.experiment_id])
    assert logged.metrics is not None
    [metric] = [metric for metric in logged.metrics if metric.key == "test_accuracy"]
    assert (metric.value, metric.dataset_name) == (trained.score.value, "digits")


def test_the_data_is_named_by_its_digest(whole: Whole, run: MlflowRun) -> None:
    digest = whole.registered.trained.dataset.digest
    assert run.inputs is not None
    [used] = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("digits", digest[:36])
    assert run.data.tags["seatrial.data"] == digest


@pytest.mark.parametrize("name", ["figures/learning-curves.png", "figures/confusion-matrix.png"])
def test_pictures_show_something(client: MlflowClient, run: MlflowRun, name: str) -> None:
    picture = Image.open(io.BytesIO(artifact(client, run, name))).convert("L")
    assert picture.width >= 600
    assert np.asarray(picture).std() > 10


def test_the_environment_says_what_and_where(client: MlflowClient, run: MlflowRun) -> None:
    environment = json.loads(artifact(client, run, "environment.json"))
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["packages"]["mlflow"] == mlflow.__version__
    assert environment["machine"]["cores"] >= 1
    assert environment["python"].startswith("3.")


def test_the_recipe_is_there_to_be_trained_again(
    whole: Whole, client: MlflowClient, run: MlflowRun, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_bytes(artifact(client, run, "recipe.yaml"))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == whole.registered.trained.recipe


def test_the_model_card_says_what_it_is_and_how_good(whole: Whole, client: MlflowClient, run: MlflowRun) -> None:
    card = artifact(client, run, "model-card.md").decode()
    trained = whole.registered.trained
    weights = sum(weight.numel() for weight in trained.module.parameters())
    for fact in (
        f"Architecture `mlp`, {weights:,} parameters",
        f"**Accuracy {trained.score.value:.4f}** on the 359 rows",
        "Licence: CC BY 4.0",
        trained.dataset.digest,
        "Input `pixels`: FP32 [-1, 1, 8, 8]",
        "## Limits",
    ):
        assert fact in card
    assert client.get_model_version("digits-mlp", "1").description == card


def test_results_of_each_class_add_up(whole: Whole, client: MlflowClient, run: MlflowRun) -> None:
    classes = json.loads(artifact(client, run, "classes.json"))["classes"]
    assert [each["label"] for each in classes] == list("0123456789")
    found = sum(each["recall"] * each["rows"] for each in classes)
    assert found == pytest.approx(whole.registered.trained.score.correct.sum())


# The model


def test_the_model_is_a_program_and_files_that_hold_no_code(model: Path) -> None:
    files = {str(file.relative_to(model)) for file in model.rglob("*") if file.is_file()}
    assert {name for name in files if Path(name).suffix in (".pkl", ".pickle", ".pth", ".pt", ".py")} == set()
    assert {
        "data/model.pt2",
        "extra_files/weights.safetensors",
        "extra_files/architecture.json",
        "extra_files/signature.json",
        "extra_files/recipe.yaml",
        "extra_files/labels.json",
    } <= files
    assert zipfile.is_zipfile(model / "data/model.pt2")
    assert yaml.safe_load((model / "MLmodel").read_text())["flavors"]["pytorch"].get("code") is None


@pytest.mark.usefixtures("client")
def test_the_program_is_the_bare_module_in_eval_mode(whole: Whole) -> None:
    trained = whole.registered.trained
    assert type(trained.module) is Perceptron
    assert not trained.module.training
    program = mlflow.pytorch.load_model(str(whole.registered.version))
    for rows in (1, 2, 3, 64):
        pixels = torch.from_numpy(trained.dataset.test.inputs["pixels"][:rows])
        with torch.inference_mode():
            answers, expected = program(pixels), trained.module(pixels)
        torch.testing.assert_close(answers, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(answers, program(pixels))


def test_signature_and_input_example(model: Path) -> None:
    described = yaml.safe_load((model / "MLmodel").read_text())
    [inputs], [outputs] = (json.loads(described["signature"][each]) for each in ("inputs", "outputs"))
    assert inputs == {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 1, 8, 8]}}
    assert outputs == {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 10]}}
    example = json.loads((model / described["saved_input_example_info"]["artifact_path"]).read_text())
    assert np.array(example).shape == (8, 1, 8, 8)


@pytest.mark.usefixtures("client")
def test_anybody_s_mlflow_can_ask_it(whole: Whole) -> None:
    trained = whole.registered.trained
    pixels = trained.dataset.test.inputs["pixels"][:3]
    answers = mlflow.pyfunc.load_model(str(whole.registered.version)).predict(pixels)
    assert np.argmax(answers, axis=1).tolist() == trained.score.predicted[:3].tolist()


def test_the_module_is_rebuilt_from_its_files(whole: Whole, model: Path) -> None:
    retrainable = read_retrainable(model)
    assert isinstance(retrainable, Retrainable)
    trained = whole.registered.trained
    assert retrainable.recipe == trained.recipe
    assert retrainable.labels == trained.dataset.labels
    assert retrainable.tokenizer is None
    assert retrainable.signature == trained.signature
    module = retrainable.module()
    assert not module.training
    pixels = torch.from_numpy(trained.dataset.test.inputs["pixels"][:5])
    assert torch.equal(module(pixels), trained.module(pixels))
    assert load_file(retrainable.weights).keys() == module.state_dict().keys()


TEXTS = [
    (f"{verb} the {thing} {when}", verb) for verb in ("open", "close", "paint") for thing in THINGS for when in WHENS
]


def test_a_model_of_texts_carries_its_tokenizer_and_takes_texts_of_any_length(settings: Settings) -> None:
    rows = [list(row) for row in TEXTS]
    requests = {"train": rows, "val": rows[::2], "test": rows[1::2]}
    dataset = clinc150.from_json(json.dumps(requests).encode(), vocabulary=60)
    recipe = load_recipe("clinc150-transformer", changes=("epochs=1", f"architecture.config={TINY}"))
    with open_run(recipe, dataset, settings) as run:
        version = register(train_in(run, recipe, dataset, build_module(recipe, dataset)), run)
    files = Path(mlflow.artifacts.download_artifacts(str(version)))
    retrainable = read_retrainable(files)
    assert isinstance(retrainable, Retrainable)
    assert retrainable.tokenizer is not None
    assert retrainable.tokenizer.read_text() == dataset.tokenizer
    program, module = mlflow.pytorch.load_model(str(version)), retrainable.module()
    tokenizer = Tokenizer.from_file(str(retrainable.tokenizer))
    for text in ("open", "paint the door and the window now please"):
        ids = torch.tensor([tokenizer.encode(text).ids])
        torch.testing.assert_close(program(ids), module(ids), atol=1e-5, rtol=1e-5)


def test_a_model_of_somebody_else_s_cannot_be_trained_anew(tmp_path: Path) -> None:
    unknown = read_retrainable(tmp_path)
    assert isinstance(unknown, NotRetrainable)
    assert "has no extra_files/architecture.json: it was not trained by `seatrial train`" in unknown.reason
