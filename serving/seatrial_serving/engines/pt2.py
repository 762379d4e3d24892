"""What an archive of torch's holds, told without torch, which would unpickle and load what it finds.

`torch.export.load` (2.13) unpickles the example inputs, every weight and constant that says so, and custom objects, and loads
native code that lies beside the program. Of all that a bundle's program may hold nothing: plain bytes of tensors and JSON.
A package of AOTInductor holds native code, and nothing else that is loaded. TorchScript is lines that torch interprets, and a
list of attributes that it reads with a reader of its own, which knows no Python. Who can change any of them can still run
code here (torch evaluates the expressions of a program's shapes): that is what the bundle's digest is for.
"""

import json
import re
import zipfile
from pathlib import Path

from seatrial.errors import BundleCorrupt

_COMMON = r"archive_format|archive_version|byteorder|version|\.format_version|\.storage_alignment|\.data/\w+"
PROGRAM = re.compile(
    _COMMON + r"|models/\w+\.json|data/weights/(weight_\d+|\w+_weights_config\.json)"
    r"|data/constants/(tensor_\d+|\w+_constants_config\.json)|data/sample_inputs/\w+\.pt"
)
PACKAGE = re.compile(_COMMON + r"|data/aotinductor/.+")
SCRIPT = re.compile(_COMMON + r"|code/(\w+/)*\w+\.py|(data|constants)\.pkl|(data|constants)/\d+")


def check_program(path: Path) -> None:
    """Raises `BundleCorrupt` unless `path` is a program in which there is nothing to unpickle and no native code."""
    with _archive(path, PROGRAM) as archive:
        for entry in archive.infolist():
            if "/data/sample_inputs/" in entry.filename and entry.file_size:
                raise BundleCorrupt(f"{path} holds example inputs, which torch would unpickle; export the model again")
            if entry.filename.endswith("_config.json") and _pickled(archive.read(entry)):
                raise BundleCorrupt(f"{path} holds pickled tensors ({entry.filename}), and no server unpickles")


def check_package(path: Path) -> None:
    """Raises `BundleCorrupt` unless `path` is a package of AOTInductor and nothing besides."""
    _archive(path, PACKAGE).close()


def check_script(path: Path) -> None:
    """Raises `BundleCorrupt` unless `path` is TorchScript and nothing besides."""
    _archive(path, SCRIPT).close()


def _archive(path: Path, allowed: re.Pattern[str]) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise BundleCorrupt(f"{path} is no archive of torch's: {error}") from error
    names = archive.namelist()
    for name in names:
        root, _, record = name.partition("/")
        if not root or not allowed.fullmatch(record) or names.count(name) > 1:
            archive.close()
            raise BundleCorrupt(f"{path} holds {name!r}, which has no place in it")
    return archive


def _pickled(config: bytes) -> bool:
    try:
        return any(tensor["use_pickle"] is not False for tensor in json.loads(config)["config"].values())
    except (ValueError, TypeError, KeyError, AttributeError):
        return True
