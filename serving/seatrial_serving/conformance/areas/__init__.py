"""The checks, by area, in the order of the table: importing this registers them."""

from seatrial_serving.conformance.areas import (  # isort: skip - this is the order
    health,
    metadata,
    inference,
    outputs,
    parameters,
    versions,
    datatypes,
    errors,
    robustness,
    binary,
    classification,
    configuration,
    statistics,
    repository,
    compression,
    streaming,
    services,
    hostile,
)

__all__ = [
    "binary", "classification", "compression", "configuration", "datatypes", "errors", "health", "hostile", "inference",
    "metadata", "outputs", "parameters", "repository", "robustness", "services", "statistics", "streaming", "versions",
]  # fmt: skip
