"""The registry over HTTP: MLflow's REST API, and artifacts through its proxy, from S3 or from a shared file system.

Source: MLflow REST API reference, 2.0 paths.
"""

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from seatrial.errors import MissingExtra, NotInRegistry, RegistryUnreachable
from seatrial.files import telling_of_full_disk
from seatrial.registry import PAGE, ModelRef, ModelVersion
from seatrial.settings import Settings


class RestRegistry:
    def __init__(self, settings: Settings) -> None:
        access = settings.tracking_access
        self._uri = settings.tracking_uri
        self._s3_endpoint = access.s3_endpoint
        self._http = httpx.Client(
            base_url=self._uri,
            timeout=settings.registry.timeout_s,
            auth=access.basic,
            headers={"Authorization": f"Bearer {access.token}"} if access.token else {},
            verify=access.verify,
            trust_env=False,
        )

    def resolve(self, ref: ModelRef) -> ModelVersion:
        if ref.alias:
            found = self._ask("registered-models/alias", name=ref.name, alias=ref.alias)
        else:
            found = self._ask("model-versions/get", name=ref.name, version=ref.version)
        version = found["model_version"]
        return ModelVersion(
            name=version["name"],
            version=str(version["version"]),
            run_id=version.get("run_id", ""),
            source=version.get("source", ""),
            tags={tag["key"]: tag.get("value", "") for tag in version.get("tags", [])},
            aliases=tuple(version.get("aliases", [])),
        )

    def aliased(self) -> list[ModelVersion]:
        refs: dict[ModelRef, None] = {}
        more: dict[str, str] = {}
        while True:
            page = self._ask("registered-models/search", max_results=PAGE, **more)
            for model in page.get("registered_models", []):
                refs |= {
                    ModelRef(name=model["name"], version=str(a["version"])): None for a in model.get("aliases", [])
                }
            if not (token := page.get("next_page_token")):
                return [self.resolve(ref) for ref in refs]
            more = {"page_token": token}

    def fetch(self, run_id: str, artifact: str, into: Path) -> None:
        root = self._ask("runs/get", run_id=run_id)["run"]["info"]["artifact_uri"]
        address = urlsplit(root)
        path = f"{address.path.strip('/')}/{artifact}"
        match address.scheme:
            case "mlflow-artifacts":
                self._download(path, into)
            case "s3":
                _download_from_s3(address.netloc, path, into, endpoint=self._s3_endpoint)
            case "file" | "":
                _copy(Path("/", unquote(path)), into)
            case other:
                raise NotInRegistry(
                    f"run {run_id} keeps its artifacts at '{root}'; we read mlflow-artifacts, s3 and file, "
                    f"not {other}: let the MLflow server proxy them (--serve-artifacts)"
                )

    def close(self) -> None:
        self._http.close()

    def _ask(self, question: str, **parameters: Any) -> Any:
        answer = self._get(f"/api/2.0/mlflow/{question}", parameters)
        if answer.status_code == httpx.codes.NOT_FOUND or _error_code(answer) in _ABSENT:
            wanted = ", ".join(f"{key} '{value}'" for key, value in parameters.items())
            raise NotInRegistry(f"the registry at {self._uri} has no {wanted}")
        self._check(answer)
        return answer.json()

    def _download(self, path: str, into: Path) -> None:
        try:
            with self._http.stream("GET", f"/api/2.0/mlflow-artifacts/artifacts/{path}") as answer:
                if answer.status_code == httpx.codes.NOT_FOUND:
                    raise NotInRegistry(f"the registry at {self._uri} has no artifact '{path}'")
                self._check(answer)
                with telling_of_full_disk(into), into.open("wb") as file:
                    for chunk in answer.iter_bytes():
                        file.write(chunk)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _get(self, path: str, parameters: dict[str, Any]) -> httpx.Response:
        try:
            return self._http.get(path, params=parameters)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _check(self, answer: httpx.Response) -> None:
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise RegistryUnreachable(
                f"the MLflow server at {self._uri} refused us ({answer.status_code}); "
                "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        if answer.is_error:
            raise RegistryUnreachable(
                f"the MLflow server at {self._uri} answered {answer.status_code} to {answer.url.path}"
            )

    def _unreachable(self, error: httpx.HTTPError) -> RegistryUnreachable:
        return RegistryUnreachable(
            f"the MLflow server at {self._uri} does not answer ({str(error) or type(error).__name__}); "
            "is it running, and is MLFLOW_TRACKING_URI right?"
        )


_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def _error_code(answer: httpx.Response) -> str:
    if answer.is_success:
        return ""
    try:
        return str(answer.json().get("error_code", ""))
    except ValueError:
        return ""


def _copy(origin: Path, into: Path) -> None:
    try:
        with telling_of_full_disk(into):
            shutil.copyfile(origin, into)
    except FileNotFoundError as error:
        raise NotInRegistry(f"there is no artifact {origin} on this machine") from error


def _download_from_s3(bucket: str, key: str, into: Path, *, endpoint: str | None) -> None:
    """Credentials, and the endpoint where it is None, are found as boto3 finds them."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ModuleNotFoundError as missing:
        raise MissingExtra("boto3", extra="s3") from missing
    try:
        with telling_of_full_disk(into):
            boto3.client("s3", endpoint_url=endpoint).download_file(bucket, key, str(into))
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NoSuchBucket"):
            raise NotInRegistry(f"there is no s3://{bucket}/{key}") from error
        raise RegistryUnreachable(f"s3://{bucket}/{key} was refused: {error}") from error
    except BotoCoreError as error:
        raise RegistryUnreachable(f"S3 does not answer for s3://{bucket}/{key}: {error}") from error
