"""Folders as Hugging Face publishes them: what `transformers` answers is what the bundle answers, texts included."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seatrial.errors import ConversionFailed, InvalidSource
from seatrial.registry import ModelRef
from seatrial.settings import Settings
from seatrial.tensors import Array
from seatrial_export import huggingface
from seatrial_export.candidate import CANDIDATES
from seatrial_export.export import export
from seatrial_export.register import register
from seatrial_export.request import Request
from seatrial_export.text import Processing, Text
from seatrial_serving.engines import open_engine
from tests.serving.models import MAX_TOKENS, TOKENIZE, VOCABULARY, token_ids, tokenizer_json

TEXTS = ("a ship at sea", "safe in harbour", "a ship is safe in harbour", "sea")
WIDTH, CLASSES = 8, ("calm", "rough", "stormy")
Build = Callable[..., Path]


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home, export={"measure_s": 0.1, "threads": 1, "max_batch": 4})


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Write the folder of a tiny BERT whose class in `transformers` is `kind`."""

    def write(kind: str = "BertModel", **config: Any) -> Path:
        transformers: Any = pytest.importorskip("transformers")
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        sizes = {
            "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
            "vocab_size": len(VOCABULARY), "max_position_embeddings": MAX_TOKENS, "pad_token_id": 0,
        }  # fmt: skip
        folder = tmp_path / "theirs"
        getattr(transformers, kind)(transformers.BertConfig(**sizes, **config)).save_pretrained(folder)
        tokenizer_json(folder / "tokenizer.json")
        return folder

    return write


def pool(folder: Path, *after: str, **pooling: Any) -> None:
    """Say in `folder`, as sentence-transformers does, what follows the encoder."""
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [
        {"path": f"{i}_{name}", "type": f"sentence_transformers.models.{name}"} for i, name in enumerate(after, 1)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def states(folder: Path, text: str) -> Array:
    """What `transformers` makes of a text alone, without padding."""
    transformers: Any = pytest.importorskip("transformers")
    import torch

    with torch.inference_mode():
        model = transformers.AutoModel.from_pretrained(folder)
        answer: Array = model(input_ids=torch.tensor([token_ids(text)])).last_hidden_state[0].numpy()
    return answer


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "of"), [("mean_tokens", lambda x: x.mean(0)), ("cls_token", lambda x: x[0])])
def test_a_sentence_encoder_is_exported_and_takes_texts(
    mode: str, of: Callable[[Array], Array], build: Build, settings: Settings
) -> None:
    folder = build()
    pool(folder, "Pooling", "Normalize", **{f"pooling_mode_{mode}": True, "pooling_mode_max_tokens": False})
    assert str(register(str(folder), name="theirs", settings=settings)) == "models:/theirs/1"
    (folder.parent / "texts.txt").write_text("\n".join(TEXTS * 2))
    request = Request(
        ref=ModelRef(name="theirs", version="1"), candidates=CANDIDATES[:1], samples=folder.parent / "texts.txt"
    )
    exported = export(request, settings)
    assert "agreement with the source model on 8 rows" in exported.report.basis
    engine = open_engine(exported.bundles["onnx-cpu"], threads=1)
    answer = engine.predict({"text": np.array([text.encode() for text in TEXTS], object)}, graph="text")
    expected = np.stack([of(states(folder, text)) for text in TEXTS])
    np.testing.assert_allclose(
        answer["embedding"], expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5
    )
    assert answer["token_count"].tolist() == [len(token_ids(text)) for text in TEXTS]
    engine.close()


@pytest.mark.slow
def test_a_text_classifier_is_exported_with_its_labels(build: Build, settings: Settings) -> None:
    folder = build("BertForSequenceClassification", id2label=dict(enumerate(CLASSES)))
    register(str(folder), name="theirs", settings=settings)
    exported = export(Request(ref=ModelRef(name="theirs", version="1"), candidates=CANDIDATES[:1]), settings)
    bundle = exported.bundles["onnx-cpu"]
    assert bundle.manifest.labels == CLASSES
    assert bundle.manifest.preprocessing == ()
    import torch

    transformers: Any = pytest.importorskip("transformers")
    ids = token_ids(TEXTS[0])
    with torch.inference_mode():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        expected = model(input_ids=torch.tensor([ids])).logits.numpy()
    engine = open_engine(bundle, threads=1)
    padded = {
        "input_ids": np.array([[*ids, 0]]),
        "attention_mask": np.array([[1] * len(ids) + [0]]),
    }
    np.testing.assert_allclose(engine.predict(padded)["logits"], expected, atol=1e-5)
    engine.close()


@pytest.mark.slow
def test_code_in_the_folder_is_not_run(build: Build, settings: Settings, tmp_path: Path) -> None:
    folder = build()
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConversionFailed, match="is no model that transformers can build"):
        register(str(folder), name="theirs", settings=settings)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_weights_that_are_missing_are_not_made_up(build: Build, settings: Settings) -> None:
    from safetensors.torch import load_file, save_file

    weights = build() / "model.safetensors"
    save_file(
        {name: w for name, w in load_file(weights).items() if "layer.1.output" not in name}, weights, {"format": "pt"}
    )
    with pytest.raises(ConversionFailed, match=r"lacks 4 weights, encoder\.layer\.1\.output"):
        register(str(weights.parent), name="theirs", settings=settings)


def test_what_the_folder_lacks_is_named(settings: Settings, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidSource, match=r"has no model.safetensors; it takes config.json, .* save_pretrained"):
        register(str(tmp_path), name="theirs", settings=settings)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InvalidSource, match=r"has no tokenizer.json"):
        register(str(tmp_path), name="theirs", settings=settings)


@pytest.mark.parametrize(
    ("after", "pooling", "words"),
    [
        (("Pooling", "Dense"), {"pooling_mode": "mean"}, "has Dense"),
        (("Normalize",), {}, "has no Pooling"),
        (("Pooling",), {"pooling_mode": "lasttoken"}, "pooled by lasttoken"),
        (("Pooling",), {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "pooled by"),
        (("Pooling",), {}, "pooled by"),
    ],
)
def test_a_pooling_that_there_is_none_of_is_told(
    after: tuple[str, ...], pooling: dict[str, Any], words: str, tmp_path: Path
) -> None:
    pool(tmp_path, *after, **pooling)
    with pytest.raises(InvalidSource, match=words):
        huggingface.pooling(tmp_path)


def test_pooling_is_read_as_old_and_new_libraries_write_it(tmp_path: Path) -> None:
    assert huggingface.pooling(tmp_path)[:2] == ("mean", False)
    pool(tmp_path, "Pooling", pooling_mode_cls_token=False, pooling_mode_mean_tokens=True)
    assert huggingface.pooling(tmp_path) == ("mean", False, ())
    pool(tmp_path, "Pooling", "Normalize", pooling_mode="cls")
    assert huggingface.pooling(tmp_path) == ("first", True, ())


def test_lines_of_text_are_rows_cut_and_padded(tmp_path: Path) -> None:
    text = Text(
        processing=Processing(tokenize=TOKENIZE, padding=7), tokenizer=tokenizer_json(tmp_path / "tokenizer.json")
    )
    (tmp_path / "texts.txt").write_text(f"a ship\n\n{'sea ' * 20}\n")
    rows = text.read_lines(tmp_path / "texts.txt")
    assert rows["attention_mask"].sum(1).tolist() == [4, MAX_TOKENS]
    assert rows["input_ids"][0].tolist() == [*token_ids("a ship"), *[7] * 4]
    (tmp_path / "texts.txt").write_text("\n \n")
    with pytest.raises(InvalidSource, match="no line of text"):
        text.read_lines(tmp_path / "texts.txt")
