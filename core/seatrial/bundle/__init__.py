"""The directory that a server loads: a manifest, the model files and golden requests, all under one digest."""

from seatrial.bundle.evidence import Evidence, Sibling, Tried, Tuning
from seatrial.bundle.golden import Golden, describe_violation
from seatrial.bundle.manifest import (
    EVIDENCE,
    MAIN,
    MANIFEST,
    Body,
    Bound,
    Driver,
    EngineSpec,
    FileEntry,
    GoldenRequest,
    Hardware,
    Manifest,
    ModelName,
    Normalize,
    Pool,
    Tokenize,
    Tolerance,
    VariantName,
)
from seatrial.bundle.store import Bundle, Draft, open_bundle, write_bundle

__all__ = [
    "EVIDENCE",
    "MAIN",
    "MANIFEST",
    "Body",
    "Bound",
    "Bundle",
    "Draft",
    "Driver",
    "EngineSpec",
    "Evidence",
    "FileEntry",
    "Golden",
    "GoldenRequest",
    "Hardware",
    "Manifest",
    "ModelName",
    "Normalize",
    "Pool",
    "Sibling",
    "Tokenize",
    "Tolerance",
    "Tried",
    "Tuning",
    "VariantName",
    "describe_violation",
    "open_bundle",
    "write_bundle",
]
