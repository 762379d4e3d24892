"""What the server and its models say about themselves, the same over REST and gRPC."""

from typing import Any

from seatrial.errors import NotReady, UnknownModel
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.generation import Generation

MODEL = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}", "/v2/models/{name}/aliases/{alias}")
"""How a model is named in a path of `/v2`."""
EXTENSIONS = (
    *("binary_tensor_data", "classification", "model_configuration", "model_repository", "parameters"),
    *("schedule_policy", "sequence", "sequence(string_id)", "statistics"),
)
"""Only what the tests prove."""


def is_model_ready(plane: DataPlane, name: str, version: str) -> bool:
    """Unknown models are not ready; asking about them is no error."""
    try:
        return plane.accepting and plane.find(name, version).ready
    except (UnknownModel, NotReady):
        return False


def metadata(plane: DataPlane, generation: Generation) -> dict[str, Any]:
    identity, signature = generation.identity, generation.signature
    tensors = {
        kind: [{"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in specs]
        for kind, specs in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }
    versions = {each.identity.version for each in plane.versions(identity.name)}
    properties = {
        "variant": identity.variant,
        "digest": identity.digest,
        "alias": identity.alias,
        "verified": str(identity.verified).lower(),
        "version": identity.version,
    }
    return {
        "name": identity.name,
        "versions": sorted(versions, key=lambda version: (len(version), version)),  # 10 after 9
        "platform": identity.platform,
        **tensors,
        "properties": properties,
    }
