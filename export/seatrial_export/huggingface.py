"""A folder as Hugging Face publishes encoders and text classifiers, made a code-free program.

`transformers` builds the network from `config.json` and fills it from `model.safetensors`; code that lies in the folder is
not run, and pickled weights are not read, so nobody need be trusted. Sentence encoders say in `modules.json` how the
vectors of the tokens become one of the text (Reimers and Gurevych, 2019); that becomes part of the graph, so that what is
verified is what somebody gets.
"""

import importlib
import json
import os
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from seatrial.bundle import Tokenize
from seatrial.errors import InvalidSource, MissingExtra
from seatrial.tensors import BATCH, DataType, DynamicAxis, Padding, Signature, TensorSpec
from seatrial_export import child
from seatrial_export.child import Limits
from seatrial_export.foreign import PROGRAM, check_same, leave_network
from seatrial_export.text import Processing, Text
from seatrial_training.retrainable import TOKENIZER

if TYPE_CHECKING:
    from torch import nn

CONFIG, MODULES = "config.json", "modules.json"
IDS, MASK, LENGTH = "input_ids", "attention_mask", "tokens"
EMBEDDING, LOGITS = "embedding", "logits"
Pooling: TypeAlias = Literal["mean", "first"]
CLASSIFIER = "ForSequenceClassification"
EXAMPLES = (
    "the ship left the harbour at dawn",
    "it is raining",
    "could you please tell me when the next train to the coast is going to leave?",
    "no",
)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`max_tokens` of 0 is what the folder says."""

    folder: str
    max_batch: int
    max_tokens: int = 0


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """The program is `PROGRAM` in the child's folder."""

    signature: Signature
    processing: Processing
    notes: tuple[str, ...]


# The parent's half


def is_folder(path: Path) -> bool:
    return (path / CONFIG).is_file()


def to_program(
    folder: Path,
    *,
    into: Path,
    limits: Limits,
    max_batch: int,
    max_tokens: int = 0,
    given_up: threading.Event | None = None,
) -> tuple[Path, Text, Converted]:
    """Have a child build what lies in `folder`.

    Raises `MissingExtra` where `transformers` is not installed, `InvalidSource` for a folder without what it takes, and
    `ConversionFailed` with the command to run it again.
    """
    if find_spec("transformers") is None:
        raise MissingExtra("transformers", extra="huggingface")
    for name in ("model.safetensors", TOKENIZER):
        if not (folder / name).is_file():
            raise InvalidSource(
                f"{folder} has no {name}; it takes {CONFIG}, model.safetensors and {TOKENIZER}, which the save_pretrained "
                "of a model and of a fast tokenizer write"
            )
    job = Job(folder=str(folder.absolute()), max_batch=max_batch, max_tokens=max_tokens)
    converted = child.run(__name__, job, folder=into, answer=Converted, limits=limits, given_up=given_up)
    return into / PROGRAM, Text(processing=converted.processing, tokenizer=folder / TOKENIZER), converted


# The child's half


def convert(job: Job) -> Converted:
    leave_network()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from seatrial_models.program import to_program as trace

    folder = Path(job.folder)
    network, config = _load(folder)
    most = _max_tokens(folder, config, job.max_tokens)
    labels = _labels(config) if _classifies(config) else ()
    module, notes = (_classifier(network), ()) if labels else _embedder(network, folder)
    processing = Processing(
        tokenize=Tokenize(file=TOKENIZER, ids=IDS, mask=MASK, max_tokens=most),
        padding=config.pad_token_id or 0,
        labels=labels,
    )
    rows = Text(processing=processing, tokenizer=folder / TOKENIZER).rows(EXAMPLES)
    example = {name: torch.from_numpy(array) for name, array in rows.items()}
    signature = _signature(processing, numbers=module(**example).shape[-1], max_batch=job.max_batch)
    program = trace(module, example, signature)
    check_same(module, program, [], example)
    torch.export.save(program, PROGRAM)
    return Converted(signature=signature, processing=processing, notes=notes)


def _load(folder: Path) -> tuple["nn.Module", Any]:
    """The network with its weights, in float32 and eval mode, and its configuration."""
    transformers: Any = importlib.import_module("transformers")  # it has no types, and need not be there
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **safe)
        if config.is_encoder_decoder or getattr(config, "is_decoder", False):
            raise InvalidSource(
                f"{folder} is a {config.model_type} that writes text; encoders and text classifiers are exported"
            )
        kind = transformers.AutoModelForSequenceClassification if _classifies(config) else transformers.AutoModel
        network, loaded = kind.from_pretrained(
            folder, **safe, config=config, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise InvalidSource(
            f"{folder} is no model that transformers can build: {str(error).partition(chr(10))[0]}"
        ) from error
    if absent := sorted(name for name in loaded["missing_keys"] if not name.startswith("pooler.")):
        raise InvalidSource(f"model.safetensors in {folder} lacks {len(absent)} weights, {absent[0]} among them")
    if not _classifies(config) and hasattr(network, "pooler"):
        network.pooler = None  # nobody asks for its answer
    return network.float().eval(), config


def _classifies(config: Any) -> bool:
    return any(name.endswith(CLASSIFIER) for name in config.architectures or ())


def _labels(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[i]) for i in range(config.num_labels))


def _max_tokens(folder: Path, config: Any, asked: int) -> int:
    """What the folder's files agree upon, or `asked` where that is less. Positions up to the padding's are RoBERTa's own."""
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    said = [
        _json(folder / "sentence_bert_config.json").get("max_seq_length"),
        _json(folder / "tokenizer_config.json").get("model_max_length"),
        getattr(config, "max_position_embeddings", 512) - offset,
        asked or None,
    ]
    return int(min(number for number in said if number))


def pooling(folder: Path) -> tuple[Pooling, bool, tuple[str, ...]]:
    """How the tokens are pooled, whether the result gets length one, and sentences for the report."""
    if not (folder / MODULES).is_file():
        return "mean", False, ("it does not say how to pool; the mean of its tokens stands for a text",)
    listed = json.loads((folder / MODULES).read_text())
    modules = {each["type"].rpartition(".")[2]: folder / each["path"] for each in listed}
    if unknown := modules.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise InvalidSource(
            f"{MODULES} has {', '.join(sorted(unknown))}; it takes a Transformer, Pooling and Normalize"
        )
    if "Pooling" not in modules:
        raise InvalidSource(f"{MODULES} has no Pooling, so there is no vector for a text")
    return _method(_json(modules["Pooling"] / CONFIG)), "Normalize" in modules, ()


def _method(config: dict[str, Any]) -> Pooling:
    """As sentence-transformers 5 writes it, and as those before did."""
    said = config.get("pooling_mode") or [
        name.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for name, chosen in config.items()
        if name.startswith("pooling_mode_") and chosen is True
    ]
    methods: dict[str, Pooling] = {"mean": "mean", "cls": "first"}
    [name, *others] = [said] if isinstance(said, str) else said or ["none"]
    if others or name not in methods:
        raise InvalidSource(f"the texts are pooled by {said}; what is exported is the mean or the first token")
    return methods[name]


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _classifier(network: "nn.Module") -> "nn.Module":
    from torch import Tensor, nn

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            logits: Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
            return logits

    return Classifier().eval()


def _embedder(network: "nn.Module", folder: Path) -> tuple["nn.Module", tuple[str, ...]]:
    """What it pools is real tokens: a row without any gets zeros."""
    from torch import Tensor, nn

    method, normalized, notes = pooling(folder)

    class Embedder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            states_BTD = self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            real_BT1 = attention_mask[:, :, None].to(states_BTD.dtype)
            pooled_BD: Tensor = states_BTD[:, 0] * real_BT1[:, 0]
            if method == "mean":
                pooled_BD = (states_BTD * real_BT1).sum(1) / real_BT1.sum(1).clamp(min=1)
            return nn.functional.normalize(pooled_BD, dim=-1) if normalized else pooled_BD

    return Embedder().eval(), notes


def _signature(processing: Processing, *, numbers: int, max_batch: int) -> Signature:
    output = LOGITS if processing.labels else EMBEDDING
    return Signature(
        inputs=tuple(TensorSpec(name=name, datatype=DataType.INT64, shape=(-1, -1)) for name in (IDS, MASK)),
        outputs=(TensorSpec(name=output, datatype=DataType.FP32, shape=(-1, numbers)),),
        dynamic_axes=(
            DynamicAxis(name=BATCH, at=dict.fromkeys((IDS, MASK, output), 0), max=max_batch),
            DynamicAxis(name=LENGTH, at={IDS: 1, MASK: 1}, max=processing.tokenize.max_tokens),
        ),
        padding=Padding(axis=LENGTH, values={IDS: processing.padding, MASK: 0}),
    )


if __name__ == "__main__":
    child.work(Job, convert)
