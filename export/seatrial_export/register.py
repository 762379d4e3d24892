"""A model from elsewhere as a model version: an ONNX, `.pt2` or TorchScript file, a Hugging Face encoder's folder, an MLflow
URI, or a factory in somebody's module.

What lands in the registry is code-free: an ONNX file or a `torch.export` program, our signature of it beside it, and an
example. Whatever it came from is opened as `logged` and `foreign` open things.
"""

import re
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version as installed
from pathlib import Path

import mlflow.artifacts
import mlflow.pyfunc
import msgspec
import onnx
from google.protobuf.message import EncodeError
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.utils import _save_example as save_example
from mlflow.types import Schema
from mlflow.types import TensorSpec as MlflowTensorSpec

from seatrial.errors import InvalidSource, NotInRegistry, RegistryUnreachable
from seatrial.registry import ModelRef, ModelVersion
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial.tensors import Signature, TensorSpec
from seatrial_export import foreign, huggingface
from seatrial_export.child import child_limits
from seatrial_export.logged import Logged, Trust, is_code_free, named, onnx_signature, open_logged, open_torch
from seatrial_export.program import ONNX, TORCH_PROGRAM, reference
from seatrial_export.samples import Inputs, fitted, read_arrays, varying
from seatrial_export.source import noise
from seatrial_training.retrainable import FOLDER, SIGNATURE

EXPERIMENT = "seatrial/register"
FROM_TAG = "seatrial.registered_from"
URI = re.compile(r"[a-z][a-z0-9+.-]*:/.*")


def register(
    source: str,
    *,
    name: str,
    settings: Settings,
    examples: Sequence[Path] = (),
    trust: bool = False,
    max_tokens: int = 0,
) -> ModelVersion:
    """Open `source`, run it once with each of the examples, and register it as a new version of `name`, with the largest of
    them. Axes in which the examples differ are dynamic. `max_tokens` limits what a Hugging Face encoder says of itself.

    Raises `Untrusted` where opening it runs somebody's code and that was not allowed, `InvalidSource` for what is no
    model, or answers nothing.
    """
    ModelRef.parse(f"{name}/1")  # refuses a name that nothing could refer to
    registry = EmbeddedRegistry(settings)
    with tempfile.TemporaryDirectory(prefix="seatrial-register-") as place:
        permission = Trust(
            given=trust or source in settings.export.trusted_models,
            folder=Path(place) / "foreign",
            limits=child_limits(settings),
            command=f"seatrial register {source} --name {name}",
        )
        rows = _read_examples(examples)
        logged = _open(source, rows, permission, max_batch=settings.export.max_batch, max_tokens=max_tokens)
        answer = reference(logged.program, logged.signature)
        inputs = [fitted(each, logged.signature, whose="the example") for each in _asked(logged, rows)]
        for each in inputs or [noise(logged.signature)]:
            answer(each)
        example = inputs[0] if inputs else None
        try:
            return _log(logged, example, name=name, source=source, registry=registry, folder=Path(place) / "model")
        except MlflowException as error:
            raise RegistryUnreachable(
                f"the registry at {settings.tracking_uri} failed: {error}. No version was made; run the same command again"
            ) from error


def _read_examples(paths: Sequence[Path]) -> list[Inputs]:
    """The largest first: torch takes sizes of 1 for fixed."""
    return sorted(map(read_arrays, paths), key=lambda each: sum(array.size for array in each.values()), reverse=True)


def _asked(logged: Logged, rows: Sequence[Inputs]) -> list[Inputs]:
    """What the model is asked before it is registered: what it came with, or else what was given."""
    first = [logged.example] if logged.example else []
    return [*first, *(named(each, logged.signature) for each in rows[1:])]


def _open(source: str, rows: Sequence[Inputs], trust: Trust, *, max_batch: int, max_tokens: int) -> Logged:
    path, first = Path(source), rows[0] if rows else None
    if path.suffix in (ONNX, TORCH_PROGRAM, *foreign.TORCHSCRIPT) and not path.is_file():
        raise InvalidSource(f"there is no file {path}")
    if path.suffix == ONNX:
        signature = onnx_signature(path, max_batch=max_batch)
        return Logged(program=path, signature=signature, example=named(first, signature) if first else None)
    if path.suffix == TORCH_PROGRAM and is_code_free(path):
        return open_torch(path, first, max_batch=max_batch)
    if path.suffix in (TORCH_PROGRAM, *foreign.TORCHSCRIPT) or foreign.FACTORY.fullmatch(source):
        if not trust.given:
            raise foreign.refuse(source, command=trust.command)
        dynamic = varying(rows) if rows else ()
        job = foreign.Job(source=str(path.absolute()) if path.suffix else source, path=str(Path.cwd()), dynamic=dynamic)
        program, _ = foreign.to_program(job, folder=trust.folder, limits=trust.limits, examples=rows)
        return open_torch(program, first, max_batch=max_batch)
    if URI.fullmatch(source):
        files = _download(source, trust.folder.with_name("files"))
        return open_logged(files, what=source, trust=trust, max_batch=max_batch, rows=first)
    if huggingface.is_folder(path):
        return _open_huggingface(path, first, trust, max_batch=max_batch, max_tokens=max_tokens)
    raise InvalidSource(
        f"'{source}' is no model that can be registered; give FILE.onnx, FILE.pt2, FILE.pt (TorchScript), a Hugging Face "
        f"folder with its {huggingface.CONFIG}, module:factory, or an MLflow URI such as runs:/RUN/model or models:/NAME/1"
    )


def _open_huggingface(folder: Path, rows: Inputs | None, trust: Trust, *, max_batch: int, max_tokens: int) -> Logged:
    program, text, converted = huggingface.to_program(
        folder, into=trust.folder, limits=trust.limits, max_batch=max_batch, max_tokens=max_tokens
    )
    return Logged(
        program=program,
        signature=converted.signature,
        example=rows or text.rows(huggingface.EXAMPLES),
        notes=converted.notes,
        text=text,
    )


def _download(uri: str, into: Path) -> Path:
    into.mkdir()
    try:
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(into)))
    except (MlflowException, OSError) as error:
        raise NotInRegistry(f"{uri} cannot be fetched: {error}") from error


def _log(
    logged: Logged, example: Inputs | None, *, name: str, source: str, registry: EmbeddedRegistry, folder: Path
) -> ModelVersion:
    """The version comes into being last: whatever is killed before leaves none."""
    client = registry.client
    model_id = client.create_logged_model(registry.experiment(EXPERIMENT), name=name, tags={FROM_TAG: source}).model_id
    _write(logged, example, folder, model_id=model_id)
    client.log_model_artifacts(model_id, str(folder))
    client.finalize_logged_model(model_id, "READY")
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.create_model_version(
        name,
        source=f"models:/{model_id}",
        model_id=model_id,
        tags={FROM_TAG: source},
        description=" ".join(logged.notes),
    )
    return registry.resolve(ModelRef(name=name, version=str(created.version)))


def _write(logged: Logged, example: Inputs | None, folder: Path, *, model_id: str) -> None:
    """A model's directory as MLflow's own flavors write it, around the very file that was given."""
    (folder / "data").mkdir(parents=True)
    (folder / FOLDER).mkdir()
    model = Model(model_id=model_id, signature=_mlflow_signature(logged.signature))
    torch_program = logged.program.suffix == TORCH_PROGRAM
    data = "data/model.pt2" if torch_program else "data/model.onnx"
    _copy_program(logged.program, folder / data)
    (folder / FOLDER / SIGNATURE).write_bytes(msgspec.json.encode(logged.signature))
    if logged.text is not None:
        logged.text.write(folder)
    if example is not None:
        arrays = list(example.values())
        save_example(model, arrays[0] if len(arrays) == 1 else dict(example), str(folder))
    if torch_program:
        model.add_flavor("pytorch", model_data="data", pytorch_version=installed("torch"), code=None)
        mlflow.pyfunc.add_to_model(model, loader_module="mlflow.pytorch", data="data", model_config={"device": None})
    else:
        model.add_flavor("onnx", data=data, onnx_version=installed("onnx"), providers=["CPUExecutionProvider"])
        mlflow.pyfunc.add_to_model(model, loader_module="mlflow.onnx", data=data)
    model.save(str(folder / "MLmodel"))


def _copy_program(program: Path, into: Path) -> None:
    """The very file that was given; an ONNX file whose weights lie in others is made whole."""
    if program.suffix == ONNX and (weights := _weight_files(program)):
        try:
            onnx.save(onnx.load(program), into)
        except (OSError, ValueError, onnx.checker.ValidationError, EncodeError) as error:
            raise InvalidSource(
                f"{program} keeps its weights in {', '.join(weights)}, and they cannot be put into one file: {error}"
            ) from error
    else:
        shutil.copyfile(program, into)


def _weight_files(program: Path) -> list[str]:
    model = onnx.load(program, load_external_data=False)
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    return sorted({entry.value for entry in entries if entry.key == "location"})


def _mlflow_signature(signature: Signature) -> ModelSignature:
    """Named where there are several: MLflow's `pyfunc` takes a single tensor without a name."""

    def schema(specs: tuple[TensorSpec, ...]) -> Schema:
        named = len(specs) > 1
        return Schema([MlflowTensorSpec(s.datatype.numpy, s.shape, s.name if named else None) for s in specs])

    return ModelSignature(inputs=schema(signature.inputs), outputs=schema(signature.outputs))
