"""A program as a Core ML package, for applications on Apple's systems.

coremltools converts on Linux too, but nothing there can run what it made. Numbers stay single precision: what halves them is
another candidate, and would have to be judged as one.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seatrial.errors import ConversionFailed
from seatrial.tensors import Signature

if TYPE_CHECKING:
    from torch.export import ExportedProgram

PACKAGE = "model.mlpackage"
ENTRY = "Manifest.json"
FOLDER = "com.apple.CoreML"
ITEMS = {"model": f"{FOLDER}/model.mlmodel", "weights": f"{FOLDER}/weights"}
"""What a package consists of, by names of ours: coremltools draws new ones each time, which would change the digest."""
DATE = "com.github.apple.coremltools.conversion_date"


def write(program: "ExportedProgram", signature: Signature) -> Path:
    """`PACKAGE` in the working directory; its tensors have the names of the signature, and its sizes are those allowed there."""
    import coremltools as ct

    converted = ct.convert(
        program.run_decompositions({}),
        convert_to="mlprogram",
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS17,
        skip_model_load=True,
    )
    specification = converted.get_spec()
    _name(specification, signature)
    _allow(specification.description.input, signature)
    del specification.description.metadata.userDefined[DATE]
    written = Path("unnamed.mlpackage")
    ct.models.MLModel(specification, weights_dir=converted.weights_dir, skip_model_load=True).save(str(written))
    return _tidied(written)


def _name(specification: Any, signature: Signature) -> None:
    import coremltools as ct

    description = specification.description
    for features, specs in ((description.input, signature.inputs), (description.output, signature.outputs)):
        found = [feature.name for feature in features]
        if len(found) != len(specs):
            raise ConversionFailed(f"coremltools made {len(found)} tensors of {len(specs)}: {', '.join(found)}")
        for old, spec in zip(found, specs, strict=True):
            if old != spec.name:
                ct.utils.rename_feature(specification, old, spec.name)


def _allow(inputs: Any, signature: Signature) -> None:
    """torch says 2 or more where it means any size, and coremltools believes it."""
    for feature in inputs:
        ranges = feature.type.multiArrayType.shapeRange.sizeRanges
        for axis in signature.dynamic_axes:
            if (index := axis.at.get(feature.name)) is None:
                continue
            if len(ranges) <= index or ranges[index].lowerBound == ranges[index].upperBound:
                raise ConversionFailed(f"the axis '{axis.name}' of '{feature.name}' became fixed")
            ranges[index].lowerBound, ranges[index].upperBound = axis.min, axis.max
            feature.type.multiArrayType.shape[index] = axis.min


def _tidied(written: Path) -> Path:
    """The same with nothing in it that differs from one time to the next, and nothing for the debugger."""
    package = Path(PACKAGE)
    shutil.copytree(written / "Data" / FOLDER, package / "Data" / FOLDER)
    shutil.rmtree(written)
    items = {
        name: {"author": FOLDER, "description": f"CoreML {name}", "name": Path(path).name, "path": path}
        for name, path in ITEMS.items()
        if (package / "Data" / path).exists()
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": "model"}
    # coremltools writes this file anew, in this form, whenever it opens a package (9.0): the digest must outlive that.
    (package / ENTRY).write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n")
    return package / ENTRY
