from pathlib import Path

import pytest

from seatrial.errors import InvalidSettings
from seatrial.settings import Settings, load_settings, setting_names


def test_flags_win_over_the_environment_over_the_file_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seatrial.toml").write_text("[serving]\nhttp_port = 1\ngrpc_port = 1\nmetrics_port = 1\n")
    monkeypatch.setenv("SEATRIAL_SERVING__HTTP_PORT", "2")
    monkeypatch.setenv("SEATRIAL_SERVING__GRPC_PORT", "2")
    serving = load_settings(serving={"http_port": 3, "grpc_port": None}).serving
    assert (serving.http_port, serving.grpc_port, serving.metrics_port) == (3, 2, 1)
    assert serving.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SEATRIAL_SERVING__HTTP_PORT", "http", "setting 'serving.http_port' is 'http'"),
        ("SEATRIAL_SERVING__HTTP_PORT", "70000", "less than or equal to 65535"),
        ("SEATRIAL_SERVING__HTPP_PORT", "1", "'serving.http_port'"),
        ("SEATRIAL_HOMM", "x", "did you mean 'SEATRIAL_HOME'?"),
    ],
)
def test_a_wrong_or_misspelt_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    assert words in str(caught.value)


def test_an_unknown_key_in_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seatrial.toml").write_text("[serving.batching]\nmax_sizes = 3\n")
    with pytest.raises(InvalidSettings, match=r"did you mean 'serving\.batching\.max_size'"):
        load_settings()


def test_mlflow_s_own_variable_names_the_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load_settings(home=tmp_path).tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    settings = load_settings(home=tmp_path)
    assert settings.tracking_uri == "http://mlflow:5000"
    assert settings.registry_is_remote
    assert settings.artifact_location is None


def test_vertex_ai_s_own_variables_are_read_behind_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIP_HTTP_PORT", "8080")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/12/deployedModels/34:predict")
    serving = load_settings().serving
    assert (serving.http_port, serving.doors.predict_route) == (8080, "/v1/endpoints/12/deployedModels/34:predict")
    assert load_settings(serving={"http_port": 9000}).serving.http_port == 9000
    (tmp_path / "seatrial.toml").write_text('[serving]\nhttp_port = 9001\ndoors.health_route = "/alive"\n')
    serving = load_settings().serving
    assert (serving.http_port, serving.doors.health_route) == (9001, "/alive")
    assert serving.doors.predict_route == "/v1/endpoints/12/deployedModels/34:predict"


@pytest.mark.parametrize(
    ("variable", "value"), [("AIP_HTTP_PORT", "x"), ("AIP_HEALTH_ROUTE", "/{any}"), ("AIP_PREDICT_ROUTE", "a")]
)
def test_variables_of_vertex_ai_that_make_no_sense_are_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSettings, match="serving"):
        load_settings()


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hush")
    access = load_settings().tracking_access
    assert access.token == "hush"
    assert "hush" not in repr(access)


def test_every_setting_has_a_description() -> None:
    def undescribed(model: type, prefix: str = "") -> list[str]:
        found = []
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]  # pydantic's metaclass adds it
            inner = field.annotation
            if hasattr(inner, "model_fields"):
                found += undescribed(inner, f"{prefix}{name}.")
            elif not field.description:
                found.append(prefix + name)
        return found

    assert undescribed(Settings) == []
    assert "serving.limits.body_bytes" in setting_names(Settings)


def test_the_key_that_our_commands_show_is_told_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().credentials.headers == {}
    monkeypatch.setenv("SEATRIAL_API_KEY", "seatrial_1_secret")
    settings = load_settings()
    assert settings.credentials.headers == {"authorization": "Bearer seatrial_1_secret"}
    assert "secret" not in f"{settings!r} {settings.credentials!r} {settings.model_dump_json()}"
    monkeypatch.setenv("SEATRIAL_API_KEY", "secret\r\nx-evil: 1")
    with pytest.raises(InvalidSettings, match="not one word") as refused:
        _ = load_settings().credentials
    assert "secret" not in str(refused.value)


def test_an_authority_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("half")
    for path in (tmp_path / "none.pem", tmp_path / "ca.pem"):
        with pytest.raises(InvalidSettings, match=f"server_ca is {path}"):
            Settings(server_ca=path).credentials.trusting()
