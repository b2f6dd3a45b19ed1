"""A wrong environment is one line that names the variable, and never its value."""

from __future__ import annotations

import pytest

from storage.__main__ import main
from storage.location import Location

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an S3 server's user sets."""
    pytest.importorskip("obstore")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "value", ["hunter2\n", " hunter2", "hunter2\t", "hun\nter2", "hun\x07ter2"]
)
@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/x", "AWS_ACCESS_KEY_ID"), ("s3://bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("s3://bucket/x", "AWS_REGION"), ("s3://bucket/x", "AWS_ENDPOINT_URL"),
        ("gs://bucket/x", "GOOGLE_SERVICE_ACCOUNT"), ("az://bucket/x", "AZURE_STORAGE_ACCOUNT_KEY"),
    ],
)  # fmt: skip
def test_white_space_at_the_ends_of_a_value_is_refused(
    url: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setenv(name, value)
    assert main(["verify", url]) == 1
    error = capfd.readouterr().err  # all of it: the client's panic would stand there, too
    assert error.startswith(f"error: the environment variable {name} begins or ends with white")
    assert error.count("\n") == 1
    assert "ter2" not in error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SOMETHING", "else\n"), ("AZURE_STORAGE_ACCOUNT_KEY", "key\n"),
        ("AWS_EXECUTION_ENV", "x "), ("AWS_PROFILE", "\tx"), ("AWS_ACCESS_KEY_IDS", "x\n"),
        ("AWS_ROOT_CERTIFICATE", "-----BEGIN\n-----END\n"),
        ("AWS_PROXY_CA_CERTIFICATE", "-----BEGIN\n-----END\n"),
    ],
)  # fmt: skip
def test_variables_that_the_client_does_not_read_and_whole_files_are_no_concern(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    _ = Location("s3://bucket/x").store


def test_a_service_account_s_key_may_have_many_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CREDENTIALS", "{\n}")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", '{\n "a": 1\n}\n')
    with pytest.raises(Exception, match="service account"):
        _ = Location("gs://bucket/x").store


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_ACCESS_KEY_ID", None, "AWS_SECRET_ACCESS_KEY is set, but AWS_ACCESS_KEY_ID is not;"),
        ("AWS_SECRET_ACCESS_KEY", None, "AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is"),
        ("AWS_TIMEOUT", "119", "AWS_TIMEOUT is not a duration with its unit, such as 120s;"),
        ("AWS_CONNECT_TIMEOUT", "119", "AWS_CONNECT_TIMEOUT is not a duration"),
        ("AWS_SKIP_SIGNATURE", "maybe", "AWS_SKIP_SIGNATURE is not true or false;"),
        ("AWS_SKIP_SIGNATURE", "", "AWS_SKIP_SIGNATURE is not true or false;"),
    ],
)
def test_a_variable_that_the_client_cannot_use_is_named_with_its_form(
    name: str, value: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError) as caught:
        _ = Location("s3://bucket/x").store
    assert str(caught.value).startswith(f"s3://bucket/x: the environment variable {said}")
    assert not value or value not in str(caught.value)


def test_a_value_that_two_variables_have_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_TIMEOUT", "119")
    monkeypatch.setenv("AWS_CONNECT_TIMEOUT", "119")
    with pytest.raises(ValueError, match=r"AWS_\w+ or AWS_\w+ is not a duration"):
        _ = Location("s3://bucket/x").store


@pytest.mark.parametrize("value", ["", "false", "0", "off", "maybe", None])
def test_http_is_allowed_by_what_is_true_alone(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    if value is not None:
        monkeypatch.setenv("AWS_ALLOW_HTTP", value)
    with pytest.raises(
        ValueError, match=r"AWS_ENDPOINT_URL names an endpoint .* AWS_ALLOW_HTTP=true"
    ):
        _ = Location("s3://bucket/x").store


@pytest.mark.parametrize("value", ["true", "True", "1", "yes", "ON"])
def test_http_is_allowed_in_the_client_s_words(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ALLOW_HTTP", value)
    _ = Location("s3://bucket/x").store


def test_without_any_key_the_machine_s_role_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    _ = Location("s3://bucket/x").store
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/x")
    _ = Location("s3://bucket/x").store
