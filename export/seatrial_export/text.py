"""What a model from elsewhere does with text: its tokenizer, and what its classes are called.

It lies beside the program in the registry, and goes from there into every bundle. Lines of text become rows by it.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from seatrial.bundle import Tokenize
from seatrial.errors import InvalidSource
from seatrial_export.samples import Inputs
from seatrial_training.retrainable import FOLDER, TOKENIZER

FILE = "text.json"
LINES = ".txt"


class Processing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model without `labels` embeds."""

    tokenize: Tokenize
    padding: int
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """`tokenizer` is the file that `processing.tokenize` names."""

    processing: Processing
    tokenizer: Path

    @staticmethod
    def read(model: Path) -> "Text | None":
        """What lies in `model`, the directory of a model as MLflow downloads it."""
        path = model / FOLDER / FILE
        if not path.is_file():
            return None
        processing = msgspec.json.decode(path.read_bytes(), type=Processing)
        return Text(processing=processing, tokenizer=model / FOLDER / TOKENIZER)

    def write(self, model: Path) -> None:
        (model / FOLDER / FILE).write_bytes(msgspec.json.encode(self.processing))
        shutil.copyfile(self.tokenizer, model / FOLDER / TOKENIZER)

    def rows(self, texts: Sequence[str]) -> Inputs:
        """A row for each text, padded to the longest of them; one that is too long is cut off."""
        from tokenizers import Tokenizer

        tokenize = self.processing.tokenize
        tokenizer = Tokenizer.from_file(str(self.tokenizer))
        tokenizer.enable_truncation(tokenize.max_tokens)
        tokenizer.no_padding()
        encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        lengths = np.array([len(ids) for ids in encoded])
        ids = np.full((len(texts), lengths.max()), self.processing.padding, np.int64)
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids[mask] = np.concatenate(encoded)
        return {tokenize.ids: ids, tokenize.mask: mask.astype(np.int64)}

    def read_lines(self, path: Path) -> Inputs:
        """Rows of a file with one text a line."""
        try:
            texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidSource(f"{path} cannot be read as lines of text: {error}") from error
        if not texts:
            raise InvalidSource(f"{path} has no line of text")
        return self.rows(texts)
