"""The settings of the export of traces: OpenTelemetry's standard variables, read and checked once, at the start.

Headers are secrets: they stand in no error, no log line and no `repr`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from runtime.errors import ConfigError
from runtime.folders import why_no_secret

PREFIX: Final = "OTEL_EXPORTER_OTLP_"
PATH: Final = "/v1/traces"  # of the OTLP specification: put behind an endpoint that is for all signals
SAMPLERS: Final = (
    *("always_on", "always_off", "traceidratio"),
    *("parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"),
)
TIMEOUT_MS: Final = 10_000  # the specification's default
LEAST_TIMEOUT_MS: Final = 100  # a guess: less is most likely meant as seconds, as the Python SDK takes it
MAX_TIMEOUT_MS: Final = 600_000  # a guess: a collector that takes ten minutes takes nothing
MAX_FILE_BYTES: Final = 64 * 1024  # a guess: eight times what servers take as headers
# What describes the request is the sender's.
OURS: Final = frozenset(
    {"host", "content-type", "content-length", "content-encoding", "transfer-encoding", "connection", "expect", "te", "trailer"}
)

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # a token of RFC 9110, section 5.6.2
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]*")
_URL: Final = re.compile(r"[\x21-\x7e]+")
_RATIO: Final = re.compile(r"[0-9.]+(e-[0-9]+)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """Where traces are sent and which; checked by `load`.

    Args:
        endpoint: the URL that requests are posted to, with its path.
        headers: sent with each request, names in lower case.
        is_gzip: whether requests are compressed.
        timeout_s: seconds that one request may take, answer included.
        certificate: file with the certificates that a collector's may be signed by; empty for the system's.
        client_certificate: file with our own certificate, and its key unless `client_key` has it; empty for none.
        client_key: file with the key of our own certificate.
        sampler: one of SAMPLERS.
        ratio: of the samplers by ratio, 0 to 1.
        resource: attributes of the resource as they are given, `service.name` among them if it is.
    """

    endpoint: str = field(repr=False)  # a path or a query may have a token
    headers: dict[str, str] = field(repr=False, default_factory=dict[str, str])
    is_gzip: bool = False
    timeout_s: float = TIMEOUT_MS / 1000
    certificate: str = ""
    client_certificate: str = ""
    client_key: str = ""
    sampler: str = "parentbased_always_on"
    ratio: float = 1.0
    resource: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def url(self) -> SplitResult:
        """The endpoint in its parts."""
        return urlsplit(self.endpoint)

    @property
    def address(self) -> str:
        """Host and port of the collector: what may be shown of the endpoint."""
        url = self.url
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        return f"{host}:{self.port}"

    @property
    def port(self) -> int:
        """The port of the collector, by default that of the scheme."""
        url = self.url
        return url.port or (443 if url.scheme == "https" else 80)

    def tls(self) -> ssl.SSLContext | None:
        """Return how to speak to the collector; None for plain http.

        Raises:
            OSError: a file cannot be read, or is no certificate or key (ssl.SSLError).
        """
        if self.url.scheme == "http":
            return None
        context = ssl.create_default_context(cafile=self.certificate or None)
        if self.client_certificate:
            # Without a password, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(self.client_certificate, self.client_key or None, password="")
        return context


def load(environment: Mapping[str, str]) -> ExportSettings | None:
    """Return the settings of the export; None where traces are off.

    They are on where an endpoint is set, unless OTEL_SDK_DISABLED is `true` or OTEL_TRACES_EXPORTER is `none`. An empty variable
    is one that is not set.

    Raises:
        ConfigError: a variable has a value that cannot be used; the text names it.
    """
    given = {name: value.strip() for name, value in environment.items() if name.startswith("OTEL_") and value.strip()}
    name, general = f"{PREFIX}TRACES_ENDPOINT", f"{PREFIX}ENDPOINT"
    if given.get("OTEL_SDK_DISABLED", "").lower() == "true" or not (name in given or general in given):
        return None
    _exporter_is_ours(given)
    if given.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    _protocol_is_ours(given)
    name, endpoint = (name, given[name]) if name in given else (general, given[general])
    url = _url(name, endpoint)
    if name == general:
        url = url._replace(path=url.path.rstrip("/") + PATH)
    headers = _headers(given)
    if headers and url.scheme == "http" and not is_loopback(url.hostname or ""):
        raise ConfigError(
            f"{name} must begin with https:// where headers are set: over plain http, whoever is in between reads them; "
            "hint: send to a collector on 127.0.0.1, and let that one have the headers"
        )
    files = _files(given)
    sampler, ratio = _sampler(given)
    settings = ExportSettings(
        endpoint=url.geturl(),
        headers=headers,
        is_gzip=_one_of(given, "COMPRESSION", ("none", "gzip")) == "gzip",
        timeout_s=_timeout_ms(given) / 1000,
        **files,
        sampler=sampler,
        ratio=ratio,
        resource=_resource(given),
    )
    try:
        settings.tls()
    except OSError as error:
        named = [f"{PREFIX}{field.upper()}" for field, path in files.items() if path] or ["the system's certificates"]
        raise ConfigError(f"{' and '.join(named)} cannot be used: {error.strerror or type(error).__name__}") from error
    return settings


def is_loopback(host: str) -> bool:
    """Return whether what is sent to this host stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _pick(given: Mapping[str, str], what: str) -> tuple[str, str]:
    """Return name and value of a variable of the exporter: the one for traces wins over the one for all signals."""
    name = f"{PREFIX}TRACES_{what}"
    if name not in given:
        name = f"{PREFIX}{what}"
    return name, given.get(name, "")


def _one_of(given: Mapping[str, str], what: str, words: tuple[str, ...]) -> str:
    name, value = _pick(given, what)
    if value and value not in words:
        raise ConfigError(f"{name} must be {' or '.join(words)}, got {_shown(value)}")
    return value


def _exporter_is_ours(given: Mapping[str, str]) -> None:
    value = given.get("OTEL_TRACES_EXPORTER", "otlp")
    if value not in ("otlp", "none"):
        raise ConfigError(f"OTEL_TRACES_EXPORTER must be otlp or none, got {_shown(value)}")


def _protocol_is_ours(given: Mapping[str, str]) -> None:
    name, value = _pick(given, "PROTOCOL")
    if value and value != "http/protobuf":
        raise ConfigError(
            f"{name} must be http/protobuf, got {_shown(value)}; "
            "hint: collectors and Jaeger take http/protobuf at port 4318, and OTEL_TRACES_EXPORTER=none switches traces off"
        )


def _url(name: str, text: str) -> SplitResult:
    """Return an endpoint in its parts. No text of an error repeats it: it may have a password.

    Raises:
        ConfigError: it is no URL that can be posted to, or has a user or password.
    """
    if not _URL.fullmatch(text):
        raise ConfigError(f"{name} must be a URL of ASCII characters without spaces, such as http://127.0.0.1:4318")
    try:
        url = urlsplit(text)
        host, port, has_user = url.hostname or "", url.port, "@" in url.netloc
        host.encode("idna")  # as whoever looks it up does
    except ValueError:
        raise ConfigError(f"{name} must be a URL such as http://127.0.0.1:4318; its host or port cannot be read") from None
    if url.scheme not in ("http", "https"):
        raise ConfigError(f"{name} must begin with http:// or https://, as in http://127.0.0.1:4318")
    if has_user:
        raise ConfigError(
            f"{name} must have no user or password in it; "
            f"hint: {PREFIX}HEADERS=Authorization=Basic%20…, or the same in a file that {PREFIX}HEADERS_FILE names"
        )
    if not host or port == 0:
        raise ConfigError(f"{name} must have a host, and a port from 1 to 65535 or none, as in http://127.0.0.1:4318")
    if "#" in text:
        raise ConfigError(f"{name} must have no # in it")
    return url


def _headers(given: Mapping[str, str]) -> dict[str, str]:
    """Return the headers by their names in lower case.

    Raises:
        ConfigError: they cannot be read or used, or they are both in a variable and in a file.
    """
    name, file = f"{PREFIX}TRACES_HEADERS", f"{PREFIX}TRACES_HEADERS_FILE"
    if name not in given and file not in given:
        name, file = f"{PREFIX}HEADERS", f"{PREFIX}HEADERS_FILE"
    if name in given and file in given:
        raise ConfigError(f"{name} and {file} are both set: unset one of them")
    name, text = (file, _secret(file, given[file])) if file in given else (name, given.get(name, ""))
    headers: dict[str, str] = {}
    for place, key, value in _pairs(name, text):
        if not _HEADER_NAME.fullmatch(key):
            raise ConfigError(f"{place} has no valid name of a header before its =")
        if not _HEADER_VALUE.fullmatch(value):
            raise ConfigError(f"{place} has a value with characters that a header cannot have: it must be printable ASCII")
        if key.lower() in OURS:
            raise ConfigError(f"{place} sets {key.lower()}, which the worker sets itself")
        headers[key.lower()] = value
    return headers


def _secret(name: str, path: str) -> str:
    """Return what a file with secrets has.

    Raises:
        ConfigError: it cannot be read, or others may read or write it.
    """
    try:
        # What is checked is what is read, whatever is put in its place meanwhile; a pipe without a writer must not hang.
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            why = why_no_secret(file.fileno())
            data = b"" if why else file.read(MAX_FILE_BYTES + 1)
        if why:
            raise ConfigError(f"{name}: {_shown(path)} cannot be trusted: {why}")
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{name}: {_shown(path)} must have at most {MAX_FILE_BYTES:,} bytes")
        return ",".join(data.decode("ascii").split("\n"))
    except OSError as error:
        raise ConfigError(f"{name}: {_shown(path)} cannot be read: {error.strerror}") from error
    except ValueError:
        # Not `from error`: an error of the decoder has the bytes.
        raise ConfigError(f"{name}: {_shown(path)} must be ASCII, and NAME=VALUE separated by commas or line breaks") from None


def _pairs(name: str, text: str) -> Iterator[tuple[str, str, str]]:
    """Return place, key and value of each `key=value` of a list with commas, decoded as in a URL.

    Raises:
        ConfigError: an entry has no `=`, or is no UTF-8. The text says which one, and repeats nothing of it.
    """
    for number, entry in enumerate(text.split(","), 1):
        if not entry.strip():
            continue
        place = f"entry {number} of {name}"
        key, sign, value = entry.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"{place} must be NAME=VALUE; hint: in a value, write %2C for a comma")
        try:
            key, value = (unquote(part.strip(), errors="strict") for part in (key, value))
            (key + value).encode()
        except UnicodeError:
            raise ConfigError(f"{place} must be UTF-8") from None
        yield place, key, value


def _files(given: Mapping[str, str]) -> dict[str, str]:
    """Return the files with certificates and key.

    Raises:
        ConfigError: there is a key without a certificate, or others may read the key.
    """
    files = {what.lower(): _pick(given, what)[1] for what in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")}
    name, key = _pick(given, "CLIENT_KEY")
    if key:
        if not files["client_certificate"]:
            raise ConfigError(f"{name} is set without {PREFIX}CLIENT_CERTIFICATE")
        try:
            why = why_no_secret(Path(key))
        except OSError as error:
            raise ConfigError(f"{name}: {_shown(key)} cannot be read: {error.strerror}") from error
        if why:
            raise ConfigError(f"{name}: {_shown(key)} cannot be trusted: {why}")
    return files


def _timeout_ms(given: Mapping[str, str]) -> int:
    name, value = _pick(given, "TIMEOUT")
    bounds = f"{LEAST_TIMEOUT_MS} to {MAX_TIMEOUT_MS:,}"
    if not value:
        return TIMEOUT_MS
    if not re.fullmatch(r"[0-9]{1,9}", value) or not LEAST_TIMEOUT_MS <= int(value) <= MAX_TIMEOUT_MS:
        raise ConfigError(f"{name} must be a number of milliseconds from {bounds}, got {_shown(value)}")
    return int(value)


def _sampler(given: Mapping[str, str]) -> tuple[str, float]:
    sampler = given.get("OTEL_TRACES_SAMPLER", "parentbased_always_on")
    if sampler not in SAMPLERS:
        raise ConfigError(f"OTEL_TRACES_SAMPLER must be one of {', '.join(SAMPLERS)}, got {_shown(sampler)}")
    text = given.get("OTEL_TRACES_SAMPLER_ARG", "")
    if not text or not sampler.endswith("ratio"):
        return sampler, 1.0
    try:
        ratio = float(text) if _RATIO.fullmatch(text) else -1.0
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ConfigError(f"OTEL_TRACES_SAMPLER_ARG must be from 0 to 1 for {sampler}, got {_shown(text)}")
    return sampler, ratio


def _resource(given: Mapping[str, str]) -> dict[str, str]:
    name = "OTEL_RESOURCE_ATTRIBUTES"
    resource = {key: value for _, key, value in _pairs(name, given.get(name, ""))}
    if service := given.get("OTEL_SERVICE_NAME"):
        try:
            service.encode()
        except UnicodeError:
            raise ConfigError("OTEL_SERVICE_NAME must be UTF-8") from None
        resource["service.name"] = service
    return resource


def _shown(value: str) -> str:
    """Return a value for an error's text: in quotes, escaped, and cut to 100 characters."""
    return ascii(value[:100])
