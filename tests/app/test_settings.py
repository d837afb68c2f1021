"""Settings: defaults that work, the environment, and what wrong values get."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings from the machine on which the tests run."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"APP_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


def test_defaults() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8000, 1)
    assert (settings.models_dir, settings.device, settings.default_model) == (Path("models"), "auto", None)
    assert (settings.max_upload_bytes, settings.max_files, settings.max_pixels) == (20_000_000, 256, 50_000_000)
    assert (settings.data_dir, settings.max_memory_mb) == (Path("data"), None)
    assert settings.api_keys == ()
    assert (settings.keep_feedback, settings.feedback_max_bytes) == (False, 1_000_000_000)


def test_environment_is_stronger_than_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("APP_PORT=9000\nAPP_WORKERS=2\nAPP_OF_ANOTHER_PROGRAM=1\n")
    monkeypatch.setenv("APP_PORT", "9001")
    settings = Settings()
    assert (settings.port, settings.workers) == (9001, 2)


def test_empty_value_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_API_KEYS", "")
    monkeypatch.setenv("APP_DEFAULT_MODEL", "")
    assert (Settings().api_keys, Settings().default_model) == ((), None)


def test_keys_are_split_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_API_KEYS", "alpha, beta")
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["alpha", "beta"]
    assert "alpha" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("APP_PORT", "70000"),
        ("APP_PORT", "http"),
        ("APP_WORKERS", "0"),
        ("APP_DEVICE", "tpu"),
        ("APP_MAX_BATCH", "0"),
        ("APP_MAX_UPLOAD_MB", "0"),
        ("APP_MAX_PIXELS", "-1"),
        ("APP_DATABASE_URL", "mysql://localhost/refit"),
        ("APP_FINETUNE_WORKERS", "-1"),
        ("APP_MAX_DATASET_MB", "0"),
        ("APP_MAX_MEMORY_MB", "0"),
        ("APP_API_KEYS", "alpha,,beta"),
        ("APP_API_KEYS", " "),
        ("APP_API_KEYS", "alpha,cl\u00e9"),
        ("APP_API_KEYS", "al pha"),
        ("APP_API_KEYS", "al\tpha"),
        ("APP_MAX_INFLIGHT", "0"),
        ("APP_MAX_INFLIGHT_MB", "0"),
        ("APP_MAX_WAIT_SECONDS", "0"),
        ("APP_MAX_DECODE_PIXELS", "0"),
        ("APP_ENGINE", "steam"),
        ("APP_MAX_RECEIVE_SECONDS", "0"),
        ("APP_KEEP_FEEDBACK", "perhaps"),
        ("APP_FEEDBACK_MAX_MB", "0"),
        ("APP_FEEDBACK_MAX_DAYS", "-1"),
    ],
)
def test_wrong_value(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings()


@pytest.mark.parametrize(
    "value", ["127.0.0.1/8", "10.0.0.0/33", "proxy.example.org", "::1,", "*,::1", "10.0.0.0/8;::1"]
)
def test_proxy_that_nobody_could_be_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("APP_TRUSTED_PROXIES", value)
    with pytest.raises(ValidationError, match="write addresses and networks such as") as refused:
        Settings()
    assert [error["loc"] for error in refused.value.errors()] == [("trusted_proxies",)]


@pytest.mark.parametrize("value", ["*", "10.0.0.0/8,::1", "192.0.2.7, fe80::1%eth0 ,2001:db8::/32"])
def test_proxies_are_addresses_and_networks(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("APP_TRUSTED_PROXIES", value)
    assert Settings().trusted_proxies == value


def test_key_that_clients_send_differently_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_API_KEYS", "alpha,cl\u00e9")
    with pytest.raises(ValidationError, match="beyond ASCII") as refused:
        Settings()
    assert [error["loc"] for error in refused.value.errors()] == [("api_keys",)]


def test_key_may_have_every_visible_character_but_the_comma(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "".join(map(chr, range(0x21, 0x7F))).replace(",", "")
    monkeypatch.setenv("APP_API_KEYS", key)
    assert [each.get_secret_value() for each in Settings().api_keys] == [key]


def _numbers() -> list[str]:
    return [name for name, field in Settings.model_fields.items() if "float" in str(field.annotation)]


@pytest.mark.parametrize("name", _numbers())
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e308"])
def test_number_that_cannot_be_counted_with(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"APP_{name.upper()}", value)
    with pytest.raises(ValidationError):
        Settings()


def test_large_numbers_can_be_counted_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _numbers():
        monkeypatch.setenv(f"APP_{name.upper()}", "1e12")
    settings = Settings()
    counted = {
        settings.max_upload_bytes,
        settings.max_dataset_bytes,
        settings.feedback_max_bytes,
        settings.max_inflight_bytes,
    }
    assert counted == {10**18}


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())
