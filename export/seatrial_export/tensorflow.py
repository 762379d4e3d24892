"""A program as TensorFlow runs it: a SavedModel, in it the program at each of a few sizes.

litert-torch says it in StableHLO. That is kept in the form that later versions of StableHLO promise to read, as the argument of
one operator, which compiles it with XLA and runs it. Weights are variables, there once for all sizes. litert-torch has a way
to TensorFlow of its own; it says of itself that it is for testing, and would give each size a copy of all weights.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seatrial.errors import ConversionFailed
from seatrial.tensors import Signature
from seatrial_export.fixed_sizes import FixedSizes, by_name, name_of, sizes_of, zeros_of
from seatrial_export.pooling import pool_whole_images

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.nn import Module

FOLDER = "model.savedmodel"
ENTRY = "saved_model.pb"
FINGERPRINT = "fingerprint.pb"
SERVING_DEFAULT = "serving_default"
"""The signature that other servers ask unless they are told another: that of the largest size."""
VERSION = 9
"""How the operator is told its StableHLO. TensorFlow 2.21 knows one more, which is for several devices."""


def write(program: "ExportedProgram", signature: Signature) -> Path:
    """`FOLDER` in the working directory; its tensors have the names and types of the signature, 64-bit ones too."""
    import tensorflow as tf

    pool_whole_images(program)
    module, weights = by_name(program, signature), _Weights()
    functions = {name_of(sizes): _function(module, signature, sizes, weights) for sizes in sizes_of(signature)}
    *_, largest = functions.values()
    holder = tf.Module()
    holder.weights = list(weights.kept.values())
    tf.saved_model.save(holder, FOLDER, signatures=functions | {SERVING_DEFAULT: largest})
    Path(FOLDER, FINGERPRINT).unlink()  # with a random number in it; whoever loads does without
    return _tidied(Path(FOLDER, ENTRY), signature)


class _Weights:
    """Variables by what is in them: sizes, or layers, that have the same numbers share one."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def variable(self, tensor: "Tensor") -> Any:
        import tensorflow as tf

        array = tensor.detach().contiguous().numpy()
        digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()
        if digest not in self.kept:
            self.kept[digest] = tf.Variable(array, trainable=False, name=f"weights_{len(self.kept)}")
        return self.kept[digest]


def _function(module: "Module", signature: Signature, sizes: FixedSizes, weights: _Weights) -> Any:
    """The program at `sizes` as a function of TensorFlow."""
    import tensorflow as tf
    import torch
    from litert_torch.backend.export import exported_program_to_mlir
    from tensorflow.compiler.tf2xla.python import xla

    zeros = zeros_of(signature, sizes)
    lowered = exported_program_to_mlir(torch.export.export(module, (), zeros), inline_constants=False)
    kept = [
        weights.variable(lowered.state_dict[each.input_spec.name]) if each.input_spec.is_parameter else None
        for each in lowered.input_signature
    ]
    code = _portable(lowered)

    def call(*given: Any) -> dict[str, Any]:
        asked = iter(given)
        answers = xla.call_module(
            [next(asked) if each is None else each for each in kept],
            module=code,
            version=VERSION,
            Tout=[spec.datatype.numpy for spec in signature.outputs],
            Sout=[tuple(each.shape) for each in lowered.output_signature],
            platforms=["CPU"],
        )
        return {spec.name: answer for spec, answer in zip(signature.outputs, answers, strict=True)}

    specs = [tf.TensorSpec(zeros[spec.name].shape, spec.datatype.numpy, spec.name) for spec in signature.inputs]
    return tf.function(call, input_signature=specs)


def _portable(lowered: Any) -> bytes:
    """Its StableHLO as a portable artifact, without a word of where it comes from."""
    from jaxlib.mlir.dialects import stablehlo
    from litert_converter.mlir import ir
    from litert_converter.mlir.passmanager import PassManager

    module = lowered.module.operation
    constants = []

    def find(operation: Any) -> Any:
        if operation.name == "arith.constant":
            constants.append(operation)
        return ir.WalkResult.ADVANCE

    with lowered.ctx, ir.Location.unknown():
        PassManager.parse("builtin.module(inline, cse, canonicalize, cse)").run(module)
        module.walk(find)
        for old in constants:  # of a dialect that portable artifacts do not have
            new = ir.Operation.create(
                "stablehlo.constant",
                results=[old.results[0].type],
                attributes={"value": old.attributes["value"]},
                ip=ir.InsertionPoint(old),
            )
            old.results[0].replace_all_uses_with(new.results[0])
            old.erase()
        text = module.get_asm(enable_debug_info=False)
    oldest = stablehlo.get_version_from_compatibility_requirement(stablehlo.StablehloCompatibilityRequirement.WEEK_12)
    artifact: bytes = stablehlo.serialize_portable_artifact_str(text, oldest)
    return artifact


def _tidied(entry: Path, signature: Signature) -> Path:
    """The same in an order that is always the same.

    Raises `ConversionFailed` where TensorFlow gave a tensor another name, which it does without a word.
    """
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    model = SavedModel.FromString(entry.read_bytes())
    [graph] = model.meta_graphs
    graph.graph_def.library.function.sort(key=lambda function: function.signature.name)
    entry.write_bytes(model.SerializeToString(deterministic=True))
    told = graph.signature_def[SERVING_DEFAULT]
    for found, specs in ((told.inputs, signature.inputs), (told.outputs, signature.outputs)):
        if strange := sorted({spec.name for spec in specs} - set(found)):
            raise ConversionFailed(f"TensorFlow takes other names: of {', '.join(strange)} it made {', '.join(found)}")
    return entry
