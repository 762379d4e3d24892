"""Spoiled rows, attacks and explanations: held against models so small that the right answer is known."""

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seatrial.tensors import Array, Signature
from seatrial_export.deltas.attack import ATTACKS, REACHES, attacked
from seatrial_export.deltas.attribution import (
    GRAD_CAM,
    INTEGRATED,
    OCCLUSION,
    YARDSTICK,
    Explained,
    Row,
    explain,
    grad_cam,
    integrated_gradients,
    likeness,
    occlusion,
)
from seatrial_export.deltas.gradients import Differentiable
from seatrial_export.deltas.pictures import CORRUPTIONS, PATCHES, SEVERITIES, Pictures
from seatrial_export.deltas.probe import Job, _Asking
from seatrial_export.deltas.probed import Probed
from seatrial_export.deltas.texts import SHARES, Texts
from seatrial_export.program import reference
from seatrial_export.samples import Inputs, Predict, take
from seatrial_models.architecture import image_classifier, text_classifier
from seatrial_models.program import to_program
from seatrial_training.data import Split
from seatrial_training.data.tokens import encode, trained_tokenizer

SIZE = 8
PICTURES = image_classifier((1, SIZE, SIZE), classes=2)
TEXTS = text_classifier(max_tokens=6, classes=2)
WORDS = ("the cat is out", "a dog is in the house", "out", "the house")


class Linear(nn.Module):
    """Logit 0 is the sum of the pixels' products with the weights, logit 1 its opposite."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.linspace(-1, 1, SIZE * SIZE).reshape(1, SIZE, SIZE))

    def forward(self, pixels: Tensor) -> Tensor:
        total = (pixels * self.weights).sum(dim=(1, 2, 3))
        return torch.stack([total, -total], dim=1)


class Corner(nn.Module):
    """Whether the upper left quarter is bright, through a convolution that looks at nothing but single pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.look.weight, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        bright = self.look(pixels)[:, 0, : SIZE // 2, : SIZE // 2].sum(dim=(1, 2))
        return torch.stack([bright, -bright], dim=1)


class Bag(nn.Module):
    """The sum of what each token says."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(200, 3)
        self.said = nn.Linear(3, 2, bias=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        present = (token_ids != 0)[:, :, None]
        logits: Tensor = self.said((self.tokens(token_ids) * present).sum(dim=1))
        return logits


def program(folder: Path, module: nn.Module, example: Mapping[str, Tensor], signature: Signature) -> Path:
    path = folder / f"{type(module).__name__}.pt2"
    torch.export.save(to_program(module.eval(), dict(example), signature), path)
    return path


def pictures(rows: int = 24) -> dict[str, Array]:
    return {"pixels": np.random.default_rng(5).uniform(-1, 1, (rows, 1, SIZE, SIZE)).astype(np.float32)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def linear(folder: Path) -> Path:
    return program(folder, Linear(), {"pixels": torch.from_numpy(pictures(4)["pixels"])}, PICTURES)


@pytest.fixture(scope="module")
def texts(folder: Path) -> tuple[Texts, Inputs]:
    tokenizer = trained_tokenizer(WORDS, vocabulary=60, max_tokens=6)
    path = folder / "tokenizer.json"
    path.write_text(tokenizer)
    found = Texts.of(TEXTS, path)
    assert found is not None
    return found, {"token_ids": encode(WORDS, tokenizer)}


@pytest.fixture(scope="module")
def bag(folder: Path, texts: tuple[Texts, Inputs]) -> Path:
    torch.manual_seed(0)
    return program(folder, Bag(), {"token_ids": torch.from_numpy(texts[1]["token_ids"])}, TEXTS)


def one(rows: Inputs, row: int = 0) -> Inputs:
    return take(rows, slice(row, row + 1))


def of(rows: Inputs) -> Pictures:
    found = Pictures.of(PICTURES, rows)
    assert found is not None
    return found


def logits(predict: Predict, rows: Inputs, label: int) -> Array:
    return predict(rows)["logits"][:, label]


# Spoiled rows


def test_every_corruption_is_worse_the_severer_and_stays_within_the_range_of_the_rows() -> None:
    rows = pictures()
    found: dict[str, list[float]] = {}
    for name, severity, spoilt in of(rows).corrupted(rows):
        assert spoilt["pixels"].shape == rows["pixels"].shape
        assert spoilt["pixels"].dtype == np.float32
        assert rows["pixels"].min() <= spoilt["pixels"].min()
        assert spoilt["pixels"].max() <= rows["pixels"].max()
        found.setdefault(name, []).append(float(np.abs(spoilt["pixels"] - rows["pixels"]).mean()))
        assert len(found[name]) == SEVERITIES.index(severity) + 1
    assert list(found) == list(CORRUPTIONS)
    for name, moved in found.items():
        assert 0 < moved[0] < moved[1] < moved[2], name


def test_blur_keeps_what_is_alike_everywhere_and_spreads_a_point_evenly() -> None:
    rows = np.zeros((1, 1, 9, 9), np.float32)
    rows[0, 0, 4, 4] = 1
    spoilt = {
        (name, severity): each["pixels"] for name, severity, each in of({"pixels": rows}).corrupted({"pixels": rows})
    }
    blurred = spoilt["Gaussian blur", 5][0, 0]
    assert blurred.sum() == pytest.approx(1, abs=1e-3)
    assert blurred == pytest.approx(blurred.T)
    assert blurred == pytest.approx(blurred[::-1])
    assert blurred[4, 4] == pytest.approx(0.1592, abs=2e-3), (
        "a normal density of deviation 1 in two dimensions: 1 / 2 pi"
    )


def test_of_a_text_more_tokens_go_the_severer_and_its_marks_stay(texts: tuple[Texts, Inputs]) -> None:
    material, rows = texts
    ids = rows["token_ids"]
    present = (ids != 0).sum()
    found = [(name, share, spoilt["token_ids"]) for name, share, spoilt in material.corrupted(rows)]
    assert [(name, share) for name, share, _ in found] == [
        (name, share) for name in ("dropped tokens", "unknown tokens") for share in SHARES
    ]
    left = [int((spoilt != 0).sum()) for name, _, spoilt in found if name == "dropped tokens"]
    assert present > left[-1]
    assert left == sorted(left, reverse=True)
    for name, _, spoilt in found:
        assert spoilt.shape == ids.shape
        ends = (spoilt != 0).argmin(axis=1)
        assert all(not row[end:].any() for row, end in zip(spoilt, ends, strict=True) if end or not row[0]), "no holes"
        if name == "unknown tokens":
            assert set(spoilt[spoilt != ids]) <= {material.unknown}


def test_rows_that_are_neither_pictures_nor_texts_are_not_taken_for_any(
    texts: tuple[Texts, Inputs], tmp_path: Path
) -> None:
    assert Pictures.of(TEXTS, texts[1]) is None
    assert Pictures.of(PICTURES, {"pixels": np.zeros((2, 5, 8, 8), np.float32)}) is None, "of five channels"
    assert Texts.of(PICTURES, tmp_path) is None
    assert Texts.of(TEXTS, None) is None


# Attacks


def test_an_attack_goes_against_the_gradient_and_no_further_than_it_may(linear: Path) -> None:
    rows = pictures(8)
    source, ask = Differentiable(linear, PICTURES), reference(linear, PICTURES)
    truth = ask(rows)["logits"].argmax(axis=1)
    weights = np.linspace(-1, 1, SIZE * SIZE).reshape(SIZE, SIZE)
    spread = rows["pixels"].max() - rows["pixels"].min()
    before = ask(rows)["logits"][np.arange(len(truth)), truth]
    for attack in ATTACKS:
        for reach in REACHES:
            found = attacked(attack, source, rows, truth, reach=reach, size=5)["pixels"]
            assert np.abs(found - rows["pixels"]).max() <= reach / 255 * spread + 1e-6
            assert rows["pixels"].min() <= found.min()
            assert found.max() <= rows["pixels"].max()
            assert (ask({"pixels": found})["logits"][np.arange(len(truth)), truth] < before).all()
    stepped = attacked("FGSM", source, rows, truth, reach=1, size=5)["pixels"][:, 0]
    against = np.where(truth == 0, -1, 1)[:, None, None] * np.sign(weights)
    inside = np.abs(stepped) < 0.95
    assert (np.sign(stepped - rows["pixels"][:, 0]) == against)[inside].all()
    twice = [attacked("PGD", source, rows, truth, reach=8, size=5)["pixels"] for _ in range(2)]
    assert (twice[0] == twice[1]).all()


# Explanations


def test_integrated_gradients_of_a_linear_model_are_its_products_and_add_up(linear: Path) -> None:
    rows = pictures()
    source, material = Differentiable(linear, PICTURES), of(rows)
    found = integrated_gradients(source, material, one(rows), 1)
    weights = np.linspace(-1, 1, SIZE * SIZE).reshape(SIZE, SIZE)
    assert found == pytest.approx(-weights * (rows["pixels"][0, 0] - material.mean[0, 0]), abs=1e-4)
    ask = reference(linear, PICTURES)
    grey = {"pixels": np.broadcast_to(material.mean, (1, 1, SIZE, SIZE)).astype(np.float32)}
    gap = logits(ask, one(rows), 1) - logits(ask, grey, 1)
    assert found.sum() == pytest.approx(float(gap[0]), abs=1e-3)


def test_occlusion_of_a_linear_model_is_the_same_as_its_integrated_gradients(linear: Path) -> None:
    rows = pictures()
    material = of(rows)
    hidden = occlusion(reference(linear, PICTURES), material, PICTURES, one(rows), 0)
    assert hidden.shape == (PATCHES, PATCHES)
    assert likeness(hidden, integrated_gradients(Differentiable(linear, PICTURES), material, one(rows), 0)) > 0.9999


def test_what_tokens_add_to_a_sum_of_tokens_is_what_each_says(bag: Path, texts: tuple[Texts, Inputs]) -> None:
    material, rows = texts
    source, ask = Differentiable(bag, TEXTS), reference(bag, TEXTS)
    for number in range(len(WORDS)):
        row = one(rows, number)
        found = integrated_gradients(source, material, row, 1)
        assert found.shape == (1, len(material.words(row)))
        assert found.sum() == pytest.approx(float(logits(ask, row, 1)[0]), abs=1e-4)
        hidden = occlusion(ask, material, TEXTS, row, 1)
        apart = hidden - found
        assert apart == pytest.approx(np.full_like(apart, apart[0, 0]), abs=1e-4), "all but what an unknown token says"


def test_grad_cam_shows_where_the_convolution_saw_what_counts(folder: Path) -> None:
    rows = {"pixels": np.abs(pictures()["pixels"])}
    source = Differentiable(program(folder, Corner(), {"pixels": torch.from_numpy(rows["pixels"])}, PICTURES), PICTURES)
    found = grad_cam(source, one(rows), 0)
    assert found.shape == (SIZE, SIZE)
    assert (found >= 0).all()
    assert likeness(found, rows["pixels"][0, 0]) > 0.999
    assert (grad_cam(source, one(rows), 1) == 0).all(), "nothing speaks for the other class"


def test_maps_are_as_alike_as_their_correlation() -> None:
    values = np.array([[1.0, 2.0, 4.0]])
    assert likeness(values, 3 * values + 1) == pytest.approx(1)
    assert likeness(values, -values) == pytest.approx(-1)
    assert likeness(np.zeros((1, 3)), np.full((1, 3), 7.0)) == 1
    assert likeness(np.zeros((1, 3)), values) == 0


def test_the_rows_of_which_both_think_least_alike_are_shown(linear: Path) -> None:
    rows = pictures()
    ask = reference(linear, PICTURES)

    def blind_to_bright_rows(inputs: Inputs) -> dict[str, Array]:
        """As the source, but where a picture's first pixel is bright it looks at it upside down."""
        bright = inputs["pixels"][:, :, :1, :1] > 0.9
        return dict(ask({"pixels": np.where(bright, inputs["pixels"][:, :, ::-1], inputs["pixels"])}))

    rows["pixels"][[1, 4], 0, 0, 0] = 0.95
    rows["pixels"][[0, 2, 3, 5], 0, 0, 0] = 0
    found = explain(
        Explained(name="source", predict=ask, gradients=Differentiable(linear, PICTURES)),
        Explained(name="variant", predict=blind_to_bright_rows, gradients=None),
        of(rows),
        PICTURES,
        [Row(inputs=one(rows, n), number=100 + n, label=0, name="zero") for n in range(6)],
    )
    assert [example.row for example in found.examples][:2] in ([101, 104], [104, 101])
    assert found.examples[-1].likeness > 0.99
    assert {(each.of, each.method) for each in found.examples[0].maps} == {
        ("source", OCCLUSION), ("source", INTEGRATED), ("variant", OCCLUSION),
    }  # fmt: skip
    assert [each.method for each in found.likenesses] == [OCCLUSION, YARDSTICK]
    assert len(found.examples[0].picture) == SIZE


# All of it


def asked(
    source: Path, variant: Predict, signature: Signature, rows: Split, *, program: str = "", tokenizer: str = ""
) -> Probed:
    job = Job(
        program=str(source), bundle="", variant_program=program, tokenizer=tokenizer, rows="", labels=("no", "yes"),
        truth=tuple(rows.labels.tolist()), numbers=tuple(range(len(rows))), threads=1, for_s=600,
    )  # fmt: skip
    return _Asking(
        job=job, signature=signature, source=reference(source, signature), variant=variant, rows=rows, until=math.inf
    ).everything()


def test_one_that_answers_as_the_source_is_apart_from_it_nowhere(linear: Path) -> None:
    rows, ask = pictures(40), reference(linear, PICTURES)
    truth = ask(rows)["logits"].argmax(axis=1)
    found = asked(linear, ask, PICTURES, Split(inputs=rows, labels=truth), program=str(linear))
    assert [curve.name for curve in found.corruptions] == list(CORRUPTIONS)
    assert [[point.at for point in curve.points] for curve in found.corruptions] == [[0, *SEVERITIES]] * 4
    assert [curve.name for curve in found.attacks] == list(ATTACKS)
    for curve in (*found.corruptions, *found.attacks):
        assert curve.points[0].pairs.source == 1
        assert all(point.pairs.source == point.pairs.variant for point in curve.points)
        assert not any(point.pairs.worse for point in curve.points)
    assert found.attacks[0].points[-1].pairs.source < 1
    assert found.explanations is not None
    assert {each.method: each.median for each in found.explanations.likenesses} == {
        OCCLUSION: pytest.approx(1), INTEGRATED: pytest.approx(1), YARDSTICK: pytest.approx(1, abs=1e-3),
    }  # fmt: skip
    assert GRAD_CAM not in {each.method for each in found.explanations.likenesses}
    assert found.notes == ()
    assert msgspec.json.decode(msgspec.json.encode(found), type=Probed) == found


def test_one_that_is_blinded_by_noise_is_apart_beyond_chance(linear: Path) -> None:
    rows, ask = pictures(300), reference(linear, PICTURES)
    truth = ask(rows)["logits"].argmax(axis=1)

    def blinded(inputs: Inputs) -> dict[str, Array]:
        known = np.isin(inputs["pixels"][:, 0, 0, 0], rows["pixels"][:, 0, 0, 0])
        return {"logits": np.where(known[:, None], ask(inputs)["logits"], np.array([[0, 1]], np.float32))}

    found = asked(linear, blinded, PICTURES, Split(inputs=rows, labels=truth))
    noise = found.corruptions[0]
    assert not noise.points[0].pairs.worse
    assert noise.points[1].pairs.worse


def test_texts_are_spoiled_and_explained_but_not_attacked(bag: Path, texts: tuple[Texts, Inputs], folder: Path) -> None:
    ask = reference(bag, TEXTS)
    nothing = np.zeros_like(texts[1]["token_ids"][:1])
    rows = Split(
        inputs={"token_ids": np.concatenate([texts[1]["token_ids"], nothing])}, labels=np.array([0, 1, 0, 1, 0])
    )
    found = asked(bag, ask, TEXTS, rows, tokenizer=str(folder / "tokenizer.json"))
    assert [curve.name for curve in found.corruptions] == ["dropped tokens", "unknown tokens"]
    assert found.attacks == ()
    assert found.notes == ("an attack moves numbers a little, and this model takes none but the ids of tokens",)
    assert found.explanations is not None
    assert all(len(example.words) == len(example.maps[0].cells[0]) for example in found.explanations.examples)
    nobody_knows = asked(bag, ask, TEXTS, rows)
    assert (nobody_knows.corruptions, nobody_knows.explanations) == ((), None)
    assert "neither pictures nor texts" in nobody_knows.notes[0]
