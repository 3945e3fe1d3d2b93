"""The settings of the export of traces: what OpenTelemetry's variables mean, and that a refusal repeats no secret."""

from __future__ import annotations

import os
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel.settings import SAMPLERS, ExportSettings, is_loopback, load
from runtime.errors import ConfigError

E = "OTEL_EXPORTER_OTLP_"
HERE = {f"{E}ENDPOINT": "http://127.0.0.1:4318"}
SECRET = "hunter2"


def settings(**variables: str) -> ExportSettings:
    found = load({**HERE, **variables})
    assert found is not None
    return found


def complaint(**variables: str) -> str:
    """Return the message of a refusal: one line without the secret, whatever was wrong."""
    with pytest.raises(ConfigError) as caught:
        load({**HERE, **variables})
    text = str(caught.value)
    assert text.isprintable()
    assert SECRET not in text
    assert SECRET not in repr(caught.value.__cause__)
    return text


def secret_file(folder: Path, text: str, mode: int = 0o600) -> str:
    path = folder / "headers"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


# --- on and off --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "off",
    [
        {},
        {f"{E}ENDPOINT": " "},
        {**HERE, "OTEL_SDK_DISABLED": "True"},
        {**HERE, "OTEL_TRACES_EXPORTER": "none"},
        {f"{E}PROTOCOL": "grpc", "OTEL_TRACES_SAMPLER": "nonsense"},  # other programs' affair
        {**HERE, "OTEL_TRACES_EXPORTER": "none", f"{E}PROTOCOL": "grpc"},
    ],
)
def test_traces_are_off_without_an_endpoint_or_where_a_variable_says_so(off: dict[str, str]) -> None:
    assert load(off) is None


@pytest.mark.parametrize("value", ["false", "1", "yes"])
def test_only_true_disables(value: str) -> None:
    assert settings(OTEL_SDK_DISABLED=value)


def test_the_defaults_are_those_of_the_specification() -> None:
    found = settings()
    assert found == ExportSettings(endpoint="http://127.0.0.1:4318/v1/traces")
    assert (found.timeout_s, found.is_gzip, found.sampler, found.ratio) == (10.0, False, "parentbased_always_on", 1.0)
    assert found.tls() is None


@pytest.mark.parametrize("value", ["console", "otlp,console", "zipkin"])
def test_another_exporter_is_refused(value: str) -> None:
    assert complaint(OTEL_TRACES_EXPORTER=value) == f"OTEL_TRACES_EXPORTER must be otlp or none, got '{value}'"


# --- the endpoint ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("https://otel.example/otlp", "https://otel.example/otlp/v1/traces"),
        ("https://otel.example/otlp/?a=b", "https://otel.example/otlp/v1/traces?a=b"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_the_path_of_traces_is_put_behind_an_endpoint_for_all_signals(endpoint: str, url: str) -> None:
    assert settings(**{f"{E}ENDPOINT": endpoint}).endpoint == url


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:4318", "http://a/", "https://a/b/?c=d"])
def test_an_endpoint_for_traces_is_taken_as_it_is_and_wins(endpoint: str) -> None:
    assert settings(**{f"{E}TRACES_ENDPOINT": endpoint}).endpoint == endpoint


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("http://a", "a:80"),
        ("https://a/secret?token=secret", "a:443"),
        ("http://[::1]:4318", "[::1]:4318"),
    ],
)
def test_only_host_and_port_of_an_endpoint_are_shown(endpoint: str, address: str) -> None:
    found = settings(**{f"{E}TRACES_ENDPOINT": endpoint})
    assert found.address == address
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    ("endpoint", "what"),
    [
        ("localhost:4318", "must begin with http:// or https://, as in http://127.0.0.1:4318"),
        ("grpc://localhost:4317", "must begin with http:// or https://"),
        ("//localhost:4318", "must begin with http"),
        (f"https://user:{SECRET}@otel.example", "must have no user or password in it; hint: OTEL_EXPORTER_OTLP_HEADERS=Auth"),
        (f"http://{SECRET}@127.0.0.1", "must have no user or password"),
        ("http://", "must have a host"),
        ("http://:4318", "must have a host"),
        ("http://a:0", "a port from 1 to 65535"),
        ("http://a:65536", "its host or port cannot be read"),
        (f"http://a:{SECRET}", "its host or port cannot be read"),
        ("http://[::1", "its host or port cannot be read"),
        ("http://a..b", "its host or port cannot be read"),
        (f"http://{'a' * 64}.b", "its host or port cannot be read"),
        ("http://a b", "ASCII characters without spaces"),
        ("http://a\r\nX-A: b", "ASCII characters without spaces"),
        ("http://\u00e4", "ASCII characters without spaces"),
        ("http://a#b", "must have no #"),
    ],
)
@pytest.mark.parametrize("name", [f"{E}ENDPOINT", f"{E}TRACES_ENDPOINT"])
def test_an_endpoint_that_cannot_be_posted_to_is_refused_and_not_repeated(name: str, endpoint: str, what: str) -> None:
    text = complaint(**{name: endpoint})
    assert text.startswith(f"{name} must")
    assert what in text


@pytest.mark.parametrize("value", ["grpc", "http/json", "GRPC"])
@pytest.mark.parametrize("name", [f"{E}PROTOCOL", f"{E}TRACES_PROTOCOL"])
def test_another_protocol_is_refused_with_the_port_that_fits(name: str, value: str) -> None:
    text = complaint(**{name: value})
    assert text.startswith(f"{name} must be http/protobuf, got '{value}'; hint: ")
    assert "port 4318" in text


def test_the_protocol_for_traces_wins() -> None:
    assert settings(**{f"{E}PROTOCOL": "grpc", f"{E}TRACES_PROTOCOL": "http/protobuf"})


# --- headers -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "headers"),
    [
        ("Authorization=Bearer%20a%3Db", {"authorization": "Bearer a=b"}),
        ("a=b=c==, X-Tenant = t ,", {"a": "b=c==", "x-tenant": "t"}),
        ("authorization=Bearer a", {"authorization": "Bearer a"}),
        ("a=,b=%2C", {"a": "", "b": ","}),
        (" , ", {}),
    ],
)
def test_headers_are_pairs_decoded_as_in_a_url(text: str, headers: dict[str, str]) -> None:
    assert settings(**{f"{E}HEADERS": text}).headers == headers


def test_the_headers_for_traces_replace_the_others(tmp_path: Path) -> None:
    assert settings(**{f"{E}HEADERS": "a=1", f"{E}TRACES_HEADERS": "b=2"}).headers == {"b": "2"}
    file = secret_file(tmp_path, "c=3")
    assert settings(**{f"{E}HEADERS": "a=1", f"{E}TRACES_HEADERS_FILE": file}).headers == {"c": "3"}
    assert settings(**{f"{E}HEADERS_FILE": file, f"{E}TRACES_HEADERS": "b=2"}).headers == {"b": "2"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (SECRET, "entry 1 of OTEL_EXPORTER_OTLP_HEADERS must be NAME=VALUE; hint: in a value, write %2C for a comma"),
        (f"a=b,{SECRET}", "entry 2 of"),
        (f"={SECRET}", "must be NAME=VALUE"),
        (f"a b={SECRET}", "no valid name"),
        (f"a:={SECRET}", "no valid name"),
        (f"a=%0D%0AX-B:{SECRET}", "printable ASCII"),
        (f"a=%00{SECRET}", "printable ASCII"),
        (f"a=\u00e4{SECRET}", "printable ASCII"),
        (f"a={SECRET}%ff", "UTF-8"),
        (f"a={SECRET}\udcff", "UTF-8"),
        ("Content-Length=5", "sets content-length, which the worker sets itself"),
        ("host=a", "sets host"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused_and_not_repeated(text: str, what: str) -> None:
    assert what in complaint(**{f"{E}HEADERS": text})


def test_headers_from_a_file_may_stand_on_lines(tmp_path: Path) -> None:
    file = secret_file(tmp_path, "Authorization=Bearer%20a\r\nb=2,c=3\n\n")
    assert settings(**{f"{E}HEADERS_FILE": file}).headers == {"authorization": "Bearer a", "b": "2", "c": "3"}


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        (0o604, "everybody may read it (chmod o-r)"),
        (0o602, "everybody may write it (chmod o-w)"),
    ],
)
def test_a_file_of_headers_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int, why: str) -> None:
    text = complaint(**{f"{E}HEADERS_FILE": secret_file(tmp_path, f"a={SECRET}", mode)})
    assert text.startswith(f"{E}HEADERS_FILE: ")
    assert text.endswith(f"cannot be trusted: {why}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_group_may_read_a_file_of_headers_only_if_that_is_root_s_and_the_group_is_ours(tmp_path: Path) -> None:
    file = secret_file(tmp_path, "a=1", 0o640)
    os.chown(file, 0, 12345)
    assert "the group 12345 may read it (chmod g-r)" in complaint(**{f"{E}HEADERS_FILE": file})
    os.chown(file, 0, os.getegid())
    assert settings(**{f"{E}HEADERS_FILE": file}).headers == {"a": "1"}
    os.chown(file, 12345, -1)
    Path(file).chmod(0o600)
    assert "it belongs to user 12345" in complaint(**{f"{E}HEADERS_FILE": file})


def test_what_is_no_file_or_too_long_or_not_there_is_refused(tmp_path: Path) -> None:
    name = f"{E}HEADERS_FILE"
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "it is no file" in complaint(**{name: str(tmp_path / "pipe")})
    assert "cannot be read: Is a directory" in complaint(**{name: str(tmp_path)})
    assert "cannot be read: No such file" in complaint(**{name: str(tmp_path / "none")})
    assert "at most 65,536 bytes" in complaint(**{name: secret_file(tmp_path, "a=" + "b" * 65_536)})
    assert "must be ASCII" in complaint(**{name: secret_file(tmp_path, f"a={SECRET}\u00e4")})


def test_a_variable_and_a_file_of_headers_are_one_too_many(tmp_path: Path) -> None:
    text = complaint(**{f"{E}HEADERS": f"a={SECRET}", f"{E}HEADERS_FILE": secret_file(tmp_path, "a=1")})
    assert text == f"{E}HEADERS and {E}HEADERS_FILE are both set: unset one of them"


@pytest.mark.parametrize("host", ["otel.example", "10.0.0.1", "localhost.example", "[::2]", "127.0.0.1.example", "0.0.0.0"])
def test_headers_go_over_plain_http_to_this_machine_alone(host: str) -> None:
    text = complaint(**{f"{E}ENDPOINT": f"http://{host}:4318", f"{E}HEADERS": f"authorization={SECRET}"})
    assert text.startswith(f"{E}ENDPOINT must begin with https:// where headers are set")
    assert "hint: send to a collector on 127.0.0.1" in text
    assert settings(**{f"{E}ENDPOINT": f"http://{host}:4318"})
    assert settings(**{f"{E}ENDPOINT": f"https://{host}:4318", f"{E}HEADERS": "a=b"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
def test_what_is_loopback(host: str) -> None:
    assert is_loopback(host)


def test_headers_stand_in_no_repr() -> None:
    assert SECRET not in repr(settings(**{f"{E}HEADERS": f"authorization={SECRET}"}))


# --- the rest ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [(f"{E}TIMEOUT", "100"), (f"{E}TRACES_TIMEOUT", "600000")])
def test_a_timeout_is_in_milliseconds(name: str, value: str) -> None:
    assert settings(**{name: value}).timeout_s == int(value) / 1000


@pytest.mark.parametrize("value", ["99", "600001", "10s", "1e3", "-1", "1.5", "9" * 5000, "\u0661\u0660\u0660\u0660"])
def test_a_timeout_out_of_bounds_is_refused(value: str) -> None:
    assert complaint(**{f"{E}TIMEOUT": value}).startswith(
        f"{E}TIMEOUT must be a number of milliseconds from 100 to 600,000, got "
    )


def test_compression_is_gzip_or_none() -> None:
    assert settings(**{f"{E}COMPRESSION": "gzip"}).is_gzip
    assert not settings(**{f"{E}COMPRESSION": "gzip", f"{E}TRACES_COMPRESSION": "none"}).is_gzip
    assert complaint(**{f"{E}COMPRESSION": "zstd"}) == f"{E}COMPRESSION must be none or gzip, got 'zstd'"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_samplers_of_the_specification_are_known(sampler: str) -> None:
    found = settings(OTEL_TRACES_SAMPLER=sampler, OTEL_TRACES_SAMPLER_ARG="0.25")
    assert (found.sampler, found.ratio) == (sampler, 0.25 if "ratio" in sampler else 1.0)


@pytest.mark.parametrize(("text", "ratio"), [("0", 0.0), ("1", 1.0), ("1e-3", 0.001), (".5", 0.5)])
def test_a_ratio_is_from_0_to_1(text: str, ratio: float) -> None:
    assert settings(OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG=text).ratio == ratio


@pytest.mark.parametrize("text", ["-0.1", "1.01", "nan", "inf", "1%", "..", "0x1", "1_0", "\u0661"])
def test_another_ratio_is_refused(text: str) -> None:
    found = complaint(OTEL_TRACES_SAMPLER="parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG=text)
    assert found.startswith("OTEL_TRACES_SAMPLER_ARG must be from 0 to 1 for parentbased_traceidratio, got ")


def test_an_unknown_sampler_is_refused_with_those_that_there_are() -> None:
    text = complaint(OTEL_TRACES_SAMPLER="jaeger_remote")
    assert text == f"OTEL_TRACES_SAMPLER must be one of {', '.join(SAMPLERS)}, got 'jaeger_remote'"


def test_the_resource_is_as_it_is_given_and_the_service_s_name_wins() -> None:
    given = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a, deployment.environment.name=%C3%A4%2Cb"}
    assert settings(**given).resource == {"service.name": "a", "deployment.environment.name": "\u00e4,b"}
    assert settings(**given, OTEL_SERVICE_NAME="b").resource["service.name"] == "b"
    assert settings().resource == {}
    assert complaint(OTEL_RESOURCE_ATTRIBUTES="a=b,c").startswith("entry 2 of OTEL_RESOURCE_ATTRIBUTES must be NAME=VALUE")
    assert complaint(OTEL_SERVICE_NAME="\udcff") == "OTEL_SERVICE_NAME must be UTF-8"


@given(
    st.dictionaries(
        st.sampled_from(
            [f"{E}{what}" for what in ("ENDPOINT", "TRACES_ENDPOINT", "HEADERS", "TIMEOUT", "COMPRESSION", "CLIENT_KEY")]
            + ["OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"]
        ),
        st.one_of(
            st.text(st.characters(min_codepoint=1)),
            st.text(st.sampled_from(string.printable + "%=,:/@[]")).map(lambda text: f"http://{text}"),
            st.sampled_from(["http://a", "a=b", "traceidratio"]),
        ),
    )
)
def test_whatever_the_variables_are_they_make_settings_or_one_line(variables: dict[str, str]) -> None:
    try:
        found = load(variables)
    except ConfigError as error:
        assert str(error).isprintable()
    else:
        if found is not None:
            found.endpoint.encode("ascii")
            "".join(found.headers.values()).encode("ascii")
            "".join((*found.resource, *found.resource.values())).encode()
            assert 0 <= found.ratio <= 1


# --- certificates ------------------------------------------------------------------------------------------------------------

TLS = {f"{E}ENDPOINT": "https://localhost:4318"}


def test_files_with_certificates_are_read_at_once(tmp_path: Path, certificate: str) -> None:
    found = settings(**TLS, **{f"{E}CERTIFICATE": certificate, f"{E}CLIENT_CERTIFICATE": certificate})
    assert (found.certificate, found.client_certificate) == (certificate, certificate)
    assert found.tls() is not None
    text = complaint(**TLS, **{f"{E}CERTIFICATE": str(tmp_path / "none")})
    assert text == f"{E}CERTIFICATE cannot be used: No such file or directory"
    assert f"{E}CERTIFICATE cannot be used" in complaint(**TLS, **{f"{E}CERTIFICATE": secret_file(tmp_path, "nonsense")})


def test_a_key_that_others_may_read_or_without_a_certificate_is_refused(tmp_path: Path, certificate: str) -> None:
    key = secret_file(tmp_path, Path(certificate).read_text())
    both = {f"{E}CLIENT_CERTIFICATE": certificate, f"{E}CLIENT_KEY": key}
    assert settings(**TLS, **both).client_key == key
    assert complaint(**TLS, **{f"{E}CLIENT_KEY": key}) == f"{E}CLIENT_KEY is set without {E}CLIENT_CERTIFICATE"
    Path(key).chmod(0o644)
    assert "cannot be trusted: everybody may read it (chmod o-r)" in complaint(**TLS, **both)
    Path(key).unlink()
    assert f"{E}CLIENT_KEY: '{key}' cannot be read: No such file" in complaint(**TLS, **both)


def test_a_key_with_a_password_is_refused_and_nothing_is_asked_at_the_terminal(tmp_path: Path, certificate: str) -> None:
    key = tmp_path / "key.pem"
    made = ["openssl", "pkey", "-in", certificate, "-aes256", "-passout", "pass:hunter22", "-out", str(key)]
    subprocess.run(made, check=True, capture_output=True)
    key.chmod(0o600)
    environment = {**TLS, f"{E}CLIENT_CERTIFICATE": certificate, f"{E}CLIENT_KEY": str(key)}
    code = f"from otel.settings import load; load({environment!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True, timeout=60)
    assert "CLIENT_KEY cannot be used" in done.stderr
    assert "pass phrase" not in done.stderr
