"""Every setting of Seatrial, in one tree. This module alone reads the environment and `seatrial.toml`.

A setting comes, in this order, from a command-line flag, the environment (`SEATRIAL_SERVING__HTTP_PORT=9000`),
`seatrial.toml` in the working directory, or the default below. MLflow's own variables work as its users expect.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from seatrial.credentials import Credentials
from seatrial.errors import InvalidSettings
from seatrial.spelling import did_you_mean

CONFIG_FILE = "seatrial.toml"
REFERENCE = "docs/reference.md lists them all"
_ROUTE = r"^(/[A-Za-z0-9._~:@-]+)+$"
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Those with a public key: a secret that both ends know could be mistaken for one."""


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Batching(_Group):
    max_size: int = Field(default=64, ge=1)
    """Most rows sent to an engine at once, where the model's own limit is not lower."""
    max_tokens: int = Field(default=512, ge=1)
    """Most tokens sent to an engine at once, padding included, where rows differ in length and the bundle says how to pad
    them. A request that alone has more is a batch of its own. The length of a text that the bundle makes into tokens is
    guessed, at four bytes a token."""
    max_delay_ms: float = Field(default=0.0, ge=0)
    """How long the first request of a batch waits for company while an engine is idle. With 0, batches form from what
    queued while the engines were busy."""
    preferred_sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Sizes that an engine is fastest at. A batch is cut to the largest of them that those who wait can fill, and a delay
    ends when the smallest is reached."""
    queue_timeout_ms: float | None = Field(default=None, gt=0)
    """How long a request may wait for an engine; after it the caller gets 504. Its deadline holds besides."""
    priority_levels: int = Field(default=1, ge=1, le=100)
    """How many levels a request's parameter `priority` can name, 1 the most urgent. A lower level waits as long as a higher
    one has requests."""
    default_priority: int | None = Field(default=None, ge=1)
    """The level of whoever names none; by default the middle one."""
    together: bool = True
    """Whether requests may share a batch; where not, each goes to an engine alone."""
    max_queue: int = Field(default=1024, ge=1)
    """Most requests waiting for one model, in each gateway; one more is refused with 503 and Retry-After."""
    max_queue_bytes: int = Field(default=512 * 2**20, ge=1)
    """Most bytes of tensors waiting for one model, in each gateway."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Batching":
        if any(size > self.max_size for size in self.preferred_sizes):
            raise ValueError(f"preferred_sizes {list(self.preferred_sizes)} must not exceed max_size {self.max_size}")
        if self.default_priority is not None and self.default_priority > self.priority_levels:
            raise ValueError(
                f"default_priority {self.default_priority} is not one of {self.priority_levels} priority_levels"
            )
        return self

    def level(self, priority: int) -> int:
        """The level of a request with this `priority`. As in Triton, one that is not there means the default."""
        default = self.default_priority or self.priority_levels // 2 + 1
        return priority if 1 <= priority <= self.priority_levels else default


class Limits(_Group):
    """What one request may take. The same numbers bind REST and gRPC."""

    body_bytes: int = Field(default=64 * 2**20, ge=1024)
    """Largest request body or gRPC message."""
    header_bytes: int = Field(default=64 * 2**10, ge=1024)
    """Largest block of HTTP headers or gRPC metadata."""
    receive_s: float = Field(default=30.0, gt=0)
    """Time a client has to send a whole request, from its first byte on."""
    idle_s: float = Field(default=75.0, gt=0)
    """How long a connection without a request stays open."""
    request_s: float = Field(default=30.0, gt=0)
    """Time from arrival to answer; after it the caller gets 504 and the request is dropped before compute."""


class Engines(_Group):
    count: int | None = Field(default=None, ge=1)
    """Engine processes for each model. By default two, or one where memory does not allow two."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of each engine process. By default the cores shared evenly among the processes."""
    start_s: float = Field(default=120.0, gt=0)
    """Time an engine process has to load, verify and warm up its bundle."""
    answer_s: float = Field(default=60.0, gt=0)
    """Time an engine has for one batch before it is taken for hung, killed and replaced."""
    no_room: Literal["refuse", "unload_first"] = "refuse"
    """What becomes of a swap whose new engines do not fit into memory beside the old ones: it is refused and the old
    version goes on, or the old one is ended first, and callers get 503 until the new one is up."""
    max_deaths: int = Field(default=3, ge=1)
    """A request that was in hand at so many deaths of an engine is answered with an error instead of tried again."""


class Sequences(_Group):
    """How models that keep a state from one request to the next are served."""

    idle_s: float = Field(default=60.0, gt=0)
    """A sequence that is not asked for so long ends."""
    max_open: int = Field(default=4096, ge=1)
    """Most sequences of one model at once; one more is refused with 503 and Retry-After."""
    max_bytes: int = Field(default=256 * 2**20, ge=1)
    """Most bytes of states that the sequences of one model take together."""
    swap_s: float = Field(default=60.0, ge=0)
    """After a swap: how long sequences may go on with the version that they began with."""


class Doors(_Group):
    """What the doors for clients of other servers are asked under."""

    model: str | None = None
    """The model that answers `/invocations` and `predict_route`, which name none, where several are served."""
    predict_route: str | None = Field(default=None, pattern=_ROUTE)
    """One more path that takes `instances`, as Vertex AI wants it. By default AIP_PREDICT_ROUTE."""
    health_route: str | None = Field(default=None, pattern=_ROUTE)
    """One more path that says whether the server is ready. By default AIP_HEALTH_ROUTE."""


class Tls(_Group):
    """TLS on the ports of REST, gRPC and management, and if wanted of metrics. The files are read again when they change."""

    certificate: Path | None = None
    """The server's certificate and those between it and the root, PEM. With it, these three ports speak TLS only."""
    key: Path | None = None
    """The certificate's private key, PEM, without a password."""
    client_ca: Path | None = None
    """Certificates that sign those of clients, PEM. With it, clients are asked for one."""
    client_certificate: Literal["required", "optional"] = "required"
    """Whether a client without a certificate is refused in the handshake. Kubernetes' own probes have none."""
    metrics: bool = False
    """Whether the port of metrics speaks TLS as the others do. Who scrapes it must know."""

    @model_validator(mode="after")
    def _complete(self) -> "Tls":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: set both or neither")
        if self.client_ca and not self.certificate:
            raise ValueError("client_ca needs certificate and key: without TLS nobody is asked for a certificate")
        if self.metrics and not self.certificate:
            raise ValueError("metrics needs certificate and key: there is no TLS without them")
        return self


class Tokens(_Group):
    """Whose JSON Web Tokens are believed. Set issuer, audience and keys to take any."""

    issuer: str | None = None
    """The `iss` that a token must have."""
    audience: str | None = None
    """The `aud` that a token must have."""
    keys: str | None = Field(default=None, pattern=r"^(https://|http://(127\.0\.0\.1|localhost|\[::1\])[:/]|/)")
    """The issuer's public keys (JWKS): an https address, or a file by its absolute path."""
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256")
    """Signatures that are believed."""
    claim: str = "sub"
    """The claim, a text or a list of texts, whose values `seatrial keys allow token:VALUE` gives rights to."""
    leeway_s: float = Field(default=30.0, ge=0)
    """How far the issuer's clock may be from ours."""
    refresh_s: float = Field(default=300.0, ge=1)
    """How often keys at an address are fetched."""

    @model_validator(mode="after")
    def _complete(self) -> "Tokens":
        if len({value is None for value in (self.issuer, self.audience, self.keys)}) > 1:
            raise ValueError("issuer, audience and keys belong together: set all three or none")
        return self


class Quota(_Group):
    """What each caller may have where `seatrial keys` says nothing else; none is no limit. Each server counts by itself; of
    several gateways, each gives its share."""

    requests_per_s: float | None = Field(default=None, gt=0)
    """Inference requests; one more is refused with 429."""
    rows_per_s: float | None = Field(default=None, gt=0)
    """Rows of inference requests. A request is taken while one is left, and what it holds is owed."""
    burst_s: float = Field(default=2.0, gt=0)
    """The share of so many seconds may be used at once."""


class Access(_Group):
    """Who may do what. Without a file, whoever reaches a port may do everything that it offers."""

    file: Path | None = None
    """The file that `seatrial keys` writes. With it, every request but those for health must come from a caller in it."""
    quota: Quota = Quota()
    tokens: Tokens = Tokens()

    @model_validator(mode="after")
    def _counts_by_caller(self) -> "Access":
        if self.file is None and (self.tokens.issuer or self.quota.requests_per_s or self.quota.rows_per_s):
            raise ValueError("tokens and quota mean nothing while nobody is asked who they are; set access.file too")
        return self


class Serving(_Group):
    host: str = "127.0.0.1"
    """Address to listen on. The container image sets 0.0.0.0."""
    http_port: int = Field(default=8000, ge=0, le=65535)
    """REST. 0 takes a free port and prints it. By default AIP_HTTP_PORT, and without that 8000."""
    grpc_port: int = Field(default=8001, ge=0, le=65535)
    """gRPC. 0 takes a free port and prints it."""
    metrics_port: int = Field(default=8002, ge=0, le=65535)
    """Prometheus metrics. 0 takes a free port and prints it."""
    management_port: int | None = Field(default=None, ge=0, le=65535)
    """A port of its own for loading and unloading models over REST, which then answers nowhere else, gRPC included. It
    says what there is, too, and infers nothing. By default REST's port does both."""
    gateways: int | None = Field(default=None, ge=1, le=64)
    """Processes that hold client connections and share the ports of REST and gRPC. By default, once a model is served of which a
    row takes less than half a millisecond: two, and one more for every six cores beyond two, which was not measured on more
    than two cores. Else one, and on one core, where `access.file` is set or `cache_bytes` is not 0, and where a model is
    stateful."""
    drain_s: float = Field(default=5.0, ge=0)
    """After SIGTERM: how long requests are still accepted, so that load balancers can notice that we are not ready."""
    latency_budget_ms: float = Field(default=100.0, gt=0)
    """The p99 latency that is promised; it is an edge of every latency histogram, and the latency SLO counts by it."""
    request_log: bool = True
    """One JSON line for each request on standard output."""
    request_log_share: float = Field(default=1.0, gt=0, le=1)
    """How many of the requests that end well are logged, as a part; those that fail are logged all."""
    repository_control: bool = False
    """Whether callers may load and unload models through the model repository API. The index is always there."""
    cache_bytes: int = Field(default=0, ge=0)
    """Most bytes of answers that are kept, to be given again to whoever asks exactly the same of the same bundle. 0 keeps
    none. For models whose answer depends on nothing but the request."""
    tuned: bool = False
    """Whether a bundle that `seatrial tune` has measured on as many cores as there are here is served with the engines and
    batching that it found, instead of those below."""
    batching: Batching = Batching()
    limits: Limits = Limits()
    engines: Engines = Engines()
    sequences: Sequences = Sequences()
    doors: Doors = Doors()
    tls: Tls = Tls()
    access: Access = Access()


class Registry(_Group):
    tracking_uri: str | None = None
    """Where MLflow keeps the models: an http(s) address or a database. By default MLFLOW_TRACKING_URI, and without
    that an SQLite database in the home directory."""
    target: str = "onnx-cpu"
    """Which target's bundle of a model version to serve and to promote."""
    fallbacks: tuple[str, ...] = ()
    """Targets whose bundle is served where that of `target` cannot run here or does not exist, the first that can."""
    poll_s: float = Field(default=1.0, gt=0)
    """How often a server asks where its aliases point."""
    timeout_s: float = Field(default=10.0, gt=0)
    """How long one question to a tracking server may take."""

    @property
    def targets(self) -> tuple[str, ...]:
        """In the order in which they are wanted."""
        return (self.target, *self.fallbacks)


class Agent(_Group):
    """Of `seatrial agent`, which verifies and times for exports that run on another machine."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own takes `serving.tls.certificate` and `serving.tls.key`."""
    port: int = Field(default=9500, ge=0, le=65535)
    """0 takes a free port and prints it."""
    token: SecretStr | None = None
    """What an export must show, by its SEATRIAL_API_KEY: at least 24 characters. Keep it in the environment or in a file."""
    token_file: Path | None = None
    """A file that holds the token, where the environment does not."""
    file_mb: float = Field(default=8000.0, gt=0)
    """The largest file that is taken."""
    keep_mb: float = Field(default=20000.0, ge=0)
    """Room for files that exports sent, below the home, for the next one that would send the same."""
    lease_s: float = Field(default=60.0, ge=1)
    """After so long without a word from the export that holds the agent, it is free for another one."""
    errand_s: float = Field(default=3600.0, gt=0)
    """The longest that one step may take: verifying one candidate, or timing all of them."""


class Kubernetes(_Group):
    """How `seatrial export --on KEY=VALUE,...` starts an agent on a node of a cluster, by kubectl."""

    image: str | None = None
    """The image that `export/Dockerfile` builds, where the nodes find it."""
    namespace: str | None = None
    """Where the agent runs; by default that of kubectl's context."""
    cpu: int = Field(default=2, ge=1)
    """Cores of the agent. Whole ones, requested and limited alike, so that a node may give it cores of its own."""
    memory: str = "4Gi"
    """Memory of the agent, requested and limited alike."""
    disk: str = "20Gi"
    """Room for the files that it is sent."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of the agent, as `nvidia.com/gpu`."""
    start_s: float = Field(default=300.0, gt=0)
    """Time that the cluster has to place, pull and start it."""
    most_s: int = Field(default=14400, ge=60)
    """After so long the cluster ends it, whatever became of the export."""


class Export(_Group):
    conversion_s: float = Field(default=600.0, gt=0)
    """Time that a conversion's child process has."""
    fine_tune_s: float = Field(default=3600.0, gt=0)
    """Time that pruning has, and teaching what is left."""
    memory_bytes: int | None = Field(default=None, ge=2**28)
    """Resident memory that one child process may take; by default three quarters of what this machine gives us."""
    fine_tune_part: float = Field(default=0.3, gt=0)
    """How many of its recipe's epochs a pruned model learns from the whole one, as a part."""
    calibration_rows: int = Field(default=256, ge=1)
    """Training rows that set the ranges of INT8 activations."""
    max_batch: int = Field(default=64, ge=1)
    """The largest batch that is verified, for models that do not say."""
    measure_s: float = Field(default=4.0, gt=0)
    """How long all variants together are timed at most, at each size of call; fast ones are done sooner."""
    measure_longer: float = Field(default=4.0, ge=0)
    """How many times as long those that may be chosen are timed at most, where they cannot be told apart within 3 %."""
    call_s: float = Field(default=60.0, gt=0)
    """Time that a call of a variant may take while it is measured; one that takes longer is lost."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of an engine that is measured, and cores that they are pinned to. By default those that a server gives each of
    its two engines."""
    keep_mb: float = Field(default=2000.0, ge=0)
    """Room for what conversions made and what was proved, below the home, for the next export of the same; 0 keeps nothing."""
    web_runtime: Path | None = None
    """The folder of the npm package onnxruntime-web; by default `node_modules/onnxruntime-web` in the home directory."""
    trusted_models: tuple[str, ...] = ()
    """Names of registered models that are opened as if with --trust."""
    agent: Agent = Agent()
    kubernetes: Kubernetes = Kubernetes()


class Triton(_Group):
    environment: Path | None = None
    """The virtual environment that holds `tritonserver`; by default `triton` in the home directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingAccess:
    """How to be let in by a tracking server, from MLflow's own variables. Secrets do not show in `repr`."""

    basic: tuple[str, str] | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    verify: bool | str = True
    s3_endpoint: str | None = None


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="SEATRIAL_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        toml_file=CONFIG_FILE,
        use_attribute_docstrings=True,
    )

    home: Path = Path(".seatrial")
    """Where state lives: the embedded MLflow database, artifacts, bundles, runs."""
    data: Path | None = None
    """The folder with the data sets that recipes name; by default `data` in the home directory."""
    api_key: SecretStr | None = None
    """The key or token that `bench`, `conformance`, `status --server` and `promote --server` show a server, and `export --on`
    an agent. Keep it in the environment: it is no option, because a command line is seen by everybody on the machine."""
    server_ca: Path | None = None
    """Certificates that sign those of the servers that these commands ask by https, PEM; by default the world's."""
    registry: Registry = Registry()
    serving: Serving = Serving()
    export: Export = Export()
    triton: Triton = Triton()

    @field_validator("home", "data")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        platform = InitSettingsSource(settings_cls, _vertex())
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls), platform

    @property
    def credentials(self) -> Credentials:
        """Raises `InvalidSettings`."""
        return Credentials(key=self.api_key.get_secret_value() if self.api_key else "", ca=self.server_ca)

    @property
    def bundles(self) -> Path:
        """Bundles by digest: what exports wrote and what servers fetched."""
        return self.home / "bundles"

    @property
    def conversions(self) -> Path:
        """What conversions made and what was proved, by all that decides about it."""
        return self.home / "conversions"

    @property
    def data_folder(self) -> Path:
        return self.data or self.home / "data"

    @property
    def access_file(self) -> Path:
        """Where `seatrial keys` writes."""
        return self.serving.access.file or self.home / "access.json"

    @property
    def triton_environment(self) -> Path:
        return self.triton.environment or self.home / "triton"

    @property
    def web_runtime(self) -> Path:
        return self.export.web_runtime or self.home / "node_modules" / "onnxruntime-web"

    @property
    def tracking_uri(self) -> str:
        return (
            self.registry.tracking_uri
            or os.environ.get("MLFLOW_TRACKING_URI")
            or f"sqlite:///{self.home / 'mlflow.db'}"
        )

    @property
    def tracking_access(self) -> TrackingAccess:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true")
        return TrackingAccess(
            basic=(user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None,
            token=os.environ.get("MLFLOW_TRACKING_TOKEN"),
            verify=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or not insecure,
            s3_endpoint=os.environ.get("MLFLOW_S3_ENDPOINT_URL"),
        )

    @property
    def artifact_location(self) -> str | None:
        """Where new experiments keep artifacts: beside an embedded database; where the server says otherwise."""
        return None if self.registry_is_remote else (self.home / "artifacts").as_uri()

    @property
    def registry_is_remote(self) -> bool:
        return self.tracking_uri.startswith(("http://", "https://"))


def load_settings(**flags: Any) -> Settings:
    """Read the settings; `flags` are command-line flags, nested as the tree, and win. None means not given.

    Raises `InvalidSettings`, naming every setting that is wrong or unknown, and the one that was likely meant.
    """
    try:
        settings = Settings(**_given(flags))
    except ValidationError as error:
        raise InvalidSettings("\n".join(_explain(problem) for problem in error.errors())) from error
    _refuse_unknown_variables()
    return settings


def _vertex() -> dict[str, Any]:
    """What Vertex AI tells a container in variables of its own."""
    names = {"http_port": "AIP_HTTP_PORT", "predict_route": "AIP_PREDICT_ROUTE", "health_route": "AIP_HEALTH_ROUTE"}
    said = {setting: os.environ[name] for setting, name in names.items() if os.environ.get(name)}
    port = {"http_port": said.pop("http_port")} if "http_port" in said else {}
    return {"serving": {**port, "doors": said}}


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    nested = {name: _given(value) if isinstance(value, dict) else value for name, value in flags.items()}
    return {name: value for name, value in nested.items() if value is not None and value != {}}


def _explain(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"there is no setting '{name}'{did_you_mean(name, setting_names(Settings), otherwise=REFERENCE)}"
    return f"setting '{name}' is {problem['input']!r}: {problem['msg'].lower()}"


def setting_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of all settings below `model`."""
    names = []
    for name, info in model.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += setting_names(inner, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _refuse_unknown_variables() -> None:
    """A misspelt variable would otherwise be ignored in silence, which is how ports end up open."""
    known = {"SEATRIAL_" + name.replace(".", "__").upper() for name in setting_names(Settings)}
    groups = {"SEATRIAL_" + name.upper() for name in Settings.model_fields}
    for name in sorted(os.environ):
        if name.startswith("SEATRIAL_") and name not in known | groups:
            meant = did_you_mean(name, sorted(known), otherwise=REFERENCE)
            raise InvalidSettings(f"the environment sets {name}, which is no setting{meant}")
