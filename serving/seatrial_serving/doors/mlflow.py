"""MLflow's scoring server, which is also what Amazon SageMaker asks of a container: `/invocations` and `/ping`.

Answers as MLflow does for a model that returns tensors: nested lists, by name where there are several outputs. Tables are
read without pandas: columns are inputs by name, or all of them together the only input; types are the signature's.
`params` are accepted and mean nothing, as in MLflow for a model without a schema for them.
Sources: `mlflow.pyfunc.scoring_server` 3.17; SageMaker, "Use your own inference code with hosting services".
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from seatrial import __version__
from seatrial.errors import MalformedRequest, SeatrialError, UnsupportedEncoding, WrongInput
from seatrial.protocol import InferRequest
from seatrial.tensors import Signature, TensorSpec
from seatrial_monitoring.series import Protocol
from seatrial_serving.data_plane import DataPlane, Exchange
from seatrial_serving.doors import rows
from seatrial_serving.doors.answering import Door

TARGET_MODEL = "x-amzn-sagemaker-target-model"
"""The one header that SageMaker passes on and that names a model."""
FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
ERROR_CODES: Mapping[int, str] = {
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def router(plane: DataPlane) -> APIRouter:
    paths = APIRouter()
    door = Door(plane=plane, protocol=Protocol.MLFLOW, refuse=_refuse)

    @paths.get("/ping")
    @paths.get("/health")
    def ping() -> Response:
        """MLflow and SageMaker read the status alone, TorchServe's users also the word."""
        return JSONResponse(
            {"status": "Healthy"} if plane.ready else {"status": "Unhealthy"}, 200 if plane.ready else 503
        )

    @paths.get("/version")
    def version() -> Response:
        """Ours: there is no MLflow in this process."""
        return PlainTextResponse(__version__)

    @paths.post("/invocations")
    async def invocations(request: Request) -> Response:
        async def reply(exchange: Exchange) -> Any:
            signature = door.find(exchange, request.headers.get(TARGET_MODEL, "")).signature
            asked = read(signature, request.headers.get("content-type", ""), await door.body(request))
            return {"predictions": rows.by_output(await plane.submit(exchange, asked))}

        return await door.answer(request, reply)

    return paths


def _refuse(status: int, error: SeatrialError) -> dict[str, str]:
    return {"error_code": ERROR_CODES.get(status, "BAD_REQUEST"), "message": str(error)}


def read(signature: Signature, content_type: str, body: bytes) -> InferRequest:
    media, _, parameters = content_type.lower().partition(";")
    if parameters.replace(" ", "").replace('"', "") not in ("", "charset=utf-8"):
        raise UnsupportedEncoding(f"the content type is {content_type!r}; bodies are UTF-8")
    match media.strip():
        case "application/json":
            return _read_json(signature, rows.read_object(body))
        case "text/csv":
            return _read_csv(signature, body)
    raise UnsupportedEncoding(f"the content type is {content_type!r}; send application/json or text/csv")


def _read_json(signature: Signature, given: dict[str, Any]) -> InferRequest:
    if not isinstance(given.get("params") or {}, dict):
        raise MalformedRequest("'params' is not an object")
    match [name for name in FORMATS if name in given]:
        case ["dataframe_split"]:
            return rows.from_table(signature, *_split(given["dataframe_split"]))
        case ["dataframe_records"]:
            return rows.from_table(signature, *_records(given["dataframe_records"]))
        case ["instances"]:
            return rows.from_rows(signature, given["instances"])
        case ["inputs"]:
            return rows.from_columns(signature, given["inputs"])
        case found:
            raise MalformedRequest(f"the body must have exactly one of {list(FORMATS)}; it has {found or list(given)}")


def _split(table: Any) -> tuple[list[str], list[list[Any]]]:
    """`index` names rows, and is not read. Columns without names are numbered, as pandas does."""
    if not isinstance(table, dict) or not _are_lists(table.get("data")):
        raise MalformedRequest("'dataframe_split' is not an object with 'columns' and 'data', a list of rows")
    data = table["data"]
    columns = table.get("columns", list(range(len(data[0]) if data else 0)))
    if not isinstance(columns, list):
        raise MalformedRequest("'columns' is not a list of names")
    return [str(column) for column in columns], data


def _records(records: Any) -> tuple[list[str], list[list[Any]]]:
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise MalformedRequest("'dataframe_records' is not a list of objects")
    columns = list(records[0]) if records else []
    if any(record.keys() != set(columns) for record in records):
        raise WrongInput(f"the records do not agree: the first has the columns {columns}")
    return columns, [[record[column] for column in columns] for record in records]


def _are_lists(data: Any) -> bool:
    return isinstance(data, list) and all(isinstance(row, list) for row in data)


def _read_csv(signature: Signature, body: bytes) -> InferRequest:
    try:
        header, *lines = csv.reader(io.StringIO(body.decode(), newline=""), strict=True)
    except (csv.Error, UnicodeDecodeError, ValueError) as error:
        raise MalformedRequest(f"the body is not CSV with a first line of column names: {error}") from error
    if _is_data(header):
        raise MalformedRequest(
            "the first line of CSV names the columns, and this one holds numbers; send the names first"
        )
    data = [line for line in lines if line]
    if any(len(line) != len(header) for line in data):
        raise WrongInput(f"there are {len(header)} columns, but not in every line so many cells")
    if rows.columns_are_inputs(signature, header):
        types: Mapping[str, TensorSpec] = rows.by_name(signature, header)
    else:
        types = dict.fromkeys(header, rows.only_input(signature))
    specs = [types[column] for column in header]
    return rows.from_table(
        signature, header, [[_cell(text, spec) for text, spec in zip(line, specs, strict=True)] for line in data]
    )


def _is_data(header: Sequence[str]) -> bool:
    """Whether a first line is a row of numbers, and not what pandas writes for columns without names: 0, 1, 2."""
    return all(_is_number(text) for text in header) and list(header) != [str(number) for number in range(len(header))]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cell(text: str, spec: TensorSpec) -> Any:
    try:
        match spec.datatype.numpy.kind:
            case "O":
                return text
            case "b":
                return {"true": True, "false": False}[text.strip().lower()]
            case "f" if math.isfinite(number := float(text)):
                return number
            case "i" | "u":
                return int(text)
    except (KeyError, ValueError):
        pass
    raise WrongInput(f"input '{spec.name}' is {spec.datatype}, but a cell holds {text[:40]!r}")
