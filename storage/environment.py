"""What the clients of object stores take from the environment, checked before they do.

No message repeats a value: it may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

_PREFIXES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
# Keys of the clients' configurations (obstore's S3Config, GCSConfig, AzureConfig and, of all three,
# ClientConfig) whose value is one line. Certificates and the key of a service account have many;
# other names with these prefixes are of other programs.
_WORDS = {
    "s3": ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "TOKEN", "REGION",
           "DEFAULT_REGION", "ROLE_ARN", "ROLE_SESSION_NAME", "WEB_IDENTITY_TOKEN_FILE",
           "ENDPOINT_URL_STS", "CONTAINER_CREDENTIALS_RELATIVE_URI",
           "CONTAINER_CREDENTIALS_FULL_URI", "CONTAINER_AUTHORIZATION_TOKEN_FILE",
           "SERVER_SIDE_ENCRYPTION", "SSE_KMS_KEY_ID", "SSE_CUSTOMER_KEY_BASE64",
           "SSE_BUCKET_KEY_ENABLED", "CHECKSUM_ALGORITHM", "CONDITIONAL_PUT",
           "COPY_IF_NOT_EXISTS", "REQUEST_PAYER", "UNSIGNED_PAYLOAD", "S3_EXPRESS",
           "IMDSV1_FALLBACK", "DISABLE_TAGGING", "VIRTUAL_HOSTED_STYLE_REQUEST"),
    "gs": ("SERVICE_ACCOUNT", "SERVICE_ACCOUNT_PATH", "APPLICATION_CREDENTIALS", "BEARER_TOKEN"),
    "az": ("STORAGE_ACCOUNT_NAME", "STORAGE_ACCOUNT_KEY", "STORAGE_ACCESS_KEY",
           "STORAGE_MASTER_KEY", "STORAGE_SAS_KEY", "STORAGE_SAS_TOKEN", "STORAGE_TOKEN",
           "STORAGE_CLIENT_ID", "CLIENT_ID", "STORAGE_CLIENT_SECRET", "CLIENT_SECRET",
           "STORAGE_TENANT_ID", "TENANT_ID", "STORAGE_AUTHORITY_ID", "AUTHORITY_ID",
           "STORAGE_AUTHORITY_HOST", "AUTHORITY_HOST", "FEDERATED_TOKEN_FILE", "OBJECT_ID",
           "MSI_RESOURCE_ID", "CREDENTIAL_TYPE", "ENCRYPTION_KEY", "USE_AZURE_CLI",
           "USE_FABRIC_ENDPOINT", "STORAGE_USE_EMULATOR", "DISABLE_TAGGING"),
}  # fmt: skip
_OPTIONS = ("ALLOW_HTTP", "ALLOW_INVALID_CERTIFICATES", "SKIP_SIGNATURE", "TIMEOUT",
            "CONNECT_TIMEOUT", "READ_TIMEOUT", "USER_AGENT")  # fmt: skip
# What the clients take as URLs.
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_METADATA_ENDPOINT",
           "AWS_PROXY_URL"),
    "gs": ("GOOGLE_BASE_URL", "GOOGLE_PROXY_URL"),
    "az": ("AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_MSI_ENDPOINT",
           "AZURE_IDENTITY_ENDPOINT", "AZURE_PROXY_URL"),
}  # fmt: skip
# Endpoints that may only be plain http if another variable says so.
_PLAIN = dict.fromkeys(_ENDPOINTS["s3"][:3], "AWS_ALLOW_HTTP")
# How the clients write what is true.
_TRUE = ("1", "true", "on", "yes", "y")

_NOT_PARSED = re.compile(r'[Ff]ailed to parse "(.*)" as (\w+)')
_FORMS = {
    "Duration": "a duration with its unit, such as 120s",
    "boolean": "true or false",
    "usize": "a whole number",
}
_PAIR = "; set both, or neither where the machine has a role of its own"
_MISSING = {
    "Missing AccessKeyId": f"AWS_SECRET_ACCESS_KEY is set, but AWS_ACCESS_KEY_ID is not{_PAIR}",
    "Missing SecretAccessKey": f"AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not{_PAIR}",
    "Account must be specified": "AZURE_STORAGE_ACCOUNT_NAME is not set; set it to the account's"
    " name",
}


def check_environment(scheme: str, environment: Mapping[str, str]) -> None:
    """Refuse what would make the client panic, or fail in words that name no variable.

    Args:
        scheme: of the store's URL.
        environment: as `os.environ`.

    Raises:
        ValueError: names the variable.
    """
    words = [f"{_PREFIXES[scheme]}{key}" for key in (*_WORDS[scheme], *_OPTIONS)]
    for name in (*words, *_ENDPOINTS[scheme]):
        value = environment.get(name, "")
        if value != value.strip() or not value.isprintable():
            raise ValueError(
                f"the environment variable {name} begins or ends with white space, or holds a line"
                " end or another character that cannot be printed; set it without (a secret's file"
                " may end in a line end)"
            )
    for name in _ENDPOINTS[scheme]:
        if name in environment:
            _check_endpoint(name, environment)


def _check_endpoint(name: str, environment: Mapping[str, str]) -> None:
    try:
        parts = urlsplit(environment[name])
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise ValueError(
            f"the environment variable {name} is no URL of an endpoint: expected"
            " https://host or http://host:port; correct it, or unset it"
        )
    allowing = _PLAIN.get(name)
    if parts.scheme == "http" and allowing and environment.get(allowing, "").lower() not in _TRUE:
        raise ValueError(
            f"the environment variable {name} names an endpoint without encryption, http://;"
            f" if that is meant, set {allowing}=true"
        )


def explained(message: str, scheme: str, environment: Mapping[str, str]) -> str | None:
    """Say which variable a client means that could not be made of the environment; None: none."""
    for said, meaning in _MISSING.items():
        if said in message:
            return f"the environment variable {meaning}"
    found = _NOT_PARSED.search(message)
    if found is None:
        return None
    names = [
        name
        for name, value in environment.items()
        if name.startswith(_PREFIXES[scheme]) and value == found[1]
    ]
    if not names:
        return None
    form = _FORMS.get(found[2], f"what the client calls {found[2]}")
    return f"the environment variable {' or '.join(names)} is not {form}; correct it, or unset it"
