"""Both forms of the registry, against the real MLflow: the library in this process and a real tracking server."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from seatrial.bundle import Bundle, Draft, EngineSpec, Hardware, write_bundle
from seatrial.errors import BundleCorrupt, InvalidSource, NotInRegistry, RegistryUnreachable
from seatrial.registry import BUNDLE_TAG, EXPORT_RUN_TAG, ModelRef, Registry, open_registry
from seatrial.registry.bundles import fetch_bundle, fetch_fitting
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.registry.events import Answered, Resolved, Unresolved, decode
from seatrial.registry.watch import Watcher
from seatrial.settings import Registry as RegistrySettings
from seatrial.settings import Settings
from tests.core.test_bundle import draft as draft  # noqa: PLC0414 - a fixture
from tests.registries import publish, tracking_server

pytestmark = pytest.mark.xdist_group("mlflow-server")


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("digits@champion", ModelRef(name="digits", alias="champion")),
        ("digits/3", ModelRef(name="digits", version="3")),
        ("models:/digits/3", ModelRef(name="digits", version="3")),
        ("models:/my model@champion", ModelRef(name="my model", alias="champion")),
    ],
)
def test_references_are_read(text: str, ref: ModelRef) -> None:
    assert ModelRef.parse(text) == ref


@pytest.mark.parametrize("text", ["digits", "../x@y", "a/b/3", "digits@", "@champion", "digits/three", "..@x", "-x/1"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidSource, match="NAME@ALIAS"):
        ModelRef.parse(text)


@pytest.fixture(scope="module")
def server(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tracking_server(migrated_store, tmp_path_factory.mktemp("mlflow")) as address:
        yield address


@pytest.fixture(params=["embedded", "rest"])
def writing_settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    if request.param == "embedded":
        return settings
    address = request.getfixturevalue("server")
    return settings.model_copy(update={"registry": RegistrySettings(tracking_uri=address)})


@pytest.fixture
def writer(writing_settings: Settings) -> EmbeddedRegistry:
    return EmbeddedRegistry(writing_settings)


@pytest.fixture
def reader(writing_settings: Settings) -> Iterator[Registry]:
    with closing(open_registry(writing_settings)) as registry:
        yield registry


@pytest.fixture
def bundle(draft: Draft, tmp_path: Path) -> Bundle:
    return write_bundle(draft, tmp_path / "built")


def test_an_alias_and_a_number_resolve_to_the_same_version(
    writer: EmbeddedRegistry, reader: Registry, bundle: Bundle
) -> None:
    number = publish(writer, bundle)
    by_alias = reader.resolve(ModelRef.parse("tiny@champion"))
    assert by_alias.version == number
    assert by_alias.tags[f"{BUNDLE_TAG}onnx-cpu"] == bundle.digest
    assert by_alias.aliases == ("champion",)
    assert reader.resolve(ModelRef.parse(f"tiny/{number}")) == by_alias


@pytest.mark.parametrize("ref", ["tiny/999", "tiny@nobody", "unheard-of@champion"])
def test_what_is_not_there_is_said_so(writer: EmbeddedRegistry, reader: Registry, bundle: Bundle, ref: str) -> None:
    publish(writer, bundle)
    with pytest.raises(NotInRegistry):
        reader.resolve(ModelRef.parse(ref))


def test_a_bundle_is_fetched_whole_and_verified(
    writer: EmbeddedRegistry, reader: Registry, bundle: Bundle, tmp_path: Path
) -> None:
    publish(writer, bundle)
    version = reader.resolve(ModelRef.parse("tiny@champion"))
    fetched = fetch_bundle(reader, version, target="onnx-cpu", store=tmp_path / "store")
    fetched.verify()
    assert fetched.digest == bundle.digest
    assert [path.name for path in (tmp_path / "store").iterdir()] == [bundle.path.name]


def test_a_bundle_that_was_damaged_in_the_store_is_fetched_again(
    writer: EmbeddedRegistry, reader: Registry, bundle: Bundle, tmp_path: Path
) -> None:
    publish(writer, bundle)
    version = reader.resolve(ModelRef.parse("tiny@champion"))
    fetched = fetch_bundle(reader, version, target="onnx-cpu", store=tmp_path / "store")
    (fetched.path / "model.onnx").write_bytes(b"half")
    fetch_bundle(reader, version, target="onnx-cpu", store=tmp_path / "store").verify()
    assert [path.name for path in (tmp_path / "store").iterdir()] == [bundle.path.name]


def test_versions_that_an_alias_points_at_are_listed_once(
    writer: EmbeddedRegistry, reader: Registry, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(writer, bundle)
    number = publish(writer, bundle)
    writer.client.set_registered_model_alias("tiny", "stable", number)
    writer.client.create_registered_model("another")
    monkeypatch.setattr(f"{type(reader).__module__}.PAGE", 1)
    [listed] = [each for each in reader.aliased() if each.name == "tiny"]
    assert (listed.version, sorted(listed.aliases)) == (number, ["champion", "stable"])
    writer.client.delete_registered_model("another")


def test_a_bundle_that_was_changed_in_the_registry_never_gets_into_the_store(
    writer: EmbeddedRegistry, reader: Registry, bundle: Bundle, tmp_path: Path
) -> None:
    (bundle.path / "model.onnx").write_bytes(b"poison!" * 100)
    publish(writer, bundle)
    version = reader.resolve(ModelRef.parse("tiny@champion"))
    with pytest.raises(BundleCorrupt, match="it was changed"):
        fetch_bundle(reader, version, target="onnx-cpu", store=tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


def test_a_version_without_a_bundle_says_how_to_build_one(
    writer: EmbeddedRegistry, reader: Registry, bundle: Bundle, tmp_path: Path
) -> None:
    number = publish(writer, bundle)
    version = reader.resolve(ModelRef.parse(f"tiny/{number}"))
    with pytest.raises(NotInRegistry, match=f"seatrial export models:/tiny/{number} --target openvino"):
        fetch_bundle(reader, version, target="openvino", store=tmp_path)


def also_for_a_gpu(writer: EmbeddedRegistry, draft: Draft, folder: Path, *, number: str) -> Bundle:
    """The version gets a bundle for `tensorrt` too, whose plan is for a GPU that nobody has any more."""
    bound = replace(
        draft,
        engine=EngineSpec(name="tensorrt"),
        hardware=Hardware(device="NVIDIA-Riva-128/sm_01", library="tensorrt 1"),
    )
    plan = write_bundle(bound, folder)
    run = writer.client.get_model_version("tiny", number).tags[EXPORT_RUN_TAG]
    writer.client.log_artifacts(run, str(plan.path), f"bundles/{plan.path.name}")
    writer.client.set_model_version_tag("tiny", number, f"{BUNDLE_TAG}tensorrt", plan.digest)
    return plan


def test_where_a_plan_is_for_another_gpu_the_fallback_is_served(
    settings: Settings, bundle: Bundle, draft: Draft, tmp_path: Path
) -> None:
    writer = EmbeddedRegistry(settings)
    plan = also_for_a_gpu(writer, draft, tmp_path / "plans", number=publish(writer, bundle))
    version = writer.resolve(ModelRef.parse("tiny@champion"))

    def fitting(*targets: str) -> str:
        return fetch_fitting(writer, version, targets=targets, store=tmp_path / "store").digest

    assert fitting("tensorrt") == plan.digest, "who opens it says why it cannot run"
    assert fitting("tensorrt", "onnx-cpu") == bundle.digest
    assert fitting("onnx-cpu", "tensorrt") == bundle.digest
    assert fitting("coreml", "onnx-cpu") == bundle.digest, "what was never exported is passed over"
    with pytest.raises(NotInRegistry, match="has no bundle for target 'coreml'"):
        fitting("coreml", "tvm-cpu")


def test_an_absent_server_is_unreachable(settings: Settings) -> None:
    absent = settings.model_copy(update={"registry": RegistrySettings(tracking_uri="http://127.0.0.1:9")})
    with closing(open_registry(absent)) as registry, pytest.raises(RegistryUnreachable, match="MLFLOW_TRACKING_URI"):
        registry.resolve(ModelRef.parse("tiny@champion"))


# The watcher


def test_the_watcher_tells_each_change_once(settings: Settings, bundle: Bundle, draft: Draft, tmp_path: Path) -> None:
    writer = EmbeddedRegistry(settings)
    watcher = Watcher([ModelRef.parse("tiny@champion")], settings)
    [absent, answered] = watcher.poll()
    assert isinstance(absent, Unresolved)
    assert isinstance(answered, Answered)

    number = publish(writer, bundle)
    [first, _] = watcher.poll()
    assert isinstance(first, Resolved)
    assert (first.version, first.digest, first.remembered) == (number, bundle.digest, False)
    assert watcher.poll() == [Answered()]

    other = write_bundle(replace(draft, labels=("x", "y", "z")), tmp_path / "built")
    second = publish(writer, other)
    [moved, _] = watcher.poll()
    assert isinstance(moved, Resolved)
    assert (moved.version, moved.digest) == (second, other.digest)


def test_the_watcher_takes_the_fallback_until_there_is_something_better(
    settings: Settings, bundle: Bundle, draft: Draft, tmp_path: Path
) -> None:
    writer = EmbeddedRegistry(settings)
    number = publish(writer, bundle)
    wanted = RegistrySettings(target="openvino-cpu", fallbacks=("tensorrt", "onnx-cpu"))
    with closing(
        Watcher([ModelRef.parse("tiny@champion")], settings.model_copy(update={"registry": wanted}))
    ) as watcher:
        [first, _] = watcher.poll()
        assert isinstance(first, Resolved)
        assert first.digest == bundle.digest
        also_for_a_gpu(writer, draft, tmp_path / "plans", number=number)
        assert watcher.poll() == [Answered()], "it cannot run here"
        better = write_bundle(replace(draft, labels=("x", "y", "z")), tmp_path / "built")
        run = writer.client.get_model_version("tiny", number).tags[EXPORT_RUN_TAG]
        writer.client.log_artifacts(run, str(better.path), f"bundles/{better.path.name}")
        writer.client.set_model_version_tag("tiny", number, f"{BUNDLE_TAG}openvino-cpu", better.digest)
        [second, _] = watcher.poll()
        assert isinstance(second, Resolved)
        assert (second.version, second.digest) == (number, better.digest)


def test_a_start_without_the_registry_uses_what_was_known_and_says_so(settings: Settings, bundle: Bundle) -> None:
    publish(EmbeddedRegistry(settings), bundle)
    ref = ModelRef.parse("tiny@champion")
    Watcher([ref], settings).poll()
    gone = settings.model_copy(update={"registry": RegistrySettings(tracking_uri="http://127.0.0.1:9")})
    with closing(Watcher([ref, ModelRef.parse("other@champion")], gone)) as watcher:
        [remembered, unknown] = watcher.poll()
    assert isinstance(remembered, Resolved)
    assert remembered.remembered
    assert isinstance(unknown, Unresolved)
    assert "does not answer" in unknown.reason


def test_the_watcher_child_speaks_lines_and_ends_with_its_reader(settings: Settings, bundle: Bundle) -> None:
    publish(EmbeddedRegistry(settings), bundle)
    child = subprocess.Popen(
        [sys.executable, "-m", "seatrial.registry.watch", "tiny@champion"],
        stdout=subprocess.PIPE,
        env=os.environ | {"SEATRIAL_REGISTRY__POLL_S": "0.1"},
    )
    assert child.stdout is not None
    first = decode(child.stdout.readline())
    assert isinstance(first, Resolved)
    assert first.digest == bundle.digest
    assert decode(child.stdout.readline()) == Answered()
    child.stdout.close()
    assert child.wait(timeout=30) is not None


def test_two_homes_in_one_process_have_a_registry_each(
    settings: Settings, migrated_store: Path, tmp_path: Path
) -> None:
    other = Settings(home=tmp_path / "other")
    other.home.mkdir()
    shutil.copyfile(migrated_store, other.home / "mlflow.db")
    EmbeddedRegistry(settings).client.create_registered_model("only-here")
    assert [model.name for model in EmbeddedRegistry(other).client.search_registered_models()] == []
    assert other.tracking_uri == f"sqlite:///{other.home}/mlflow.db"
