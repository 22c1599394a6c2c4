"""Answers that a registry should not give, from a server that gives what a test says; others are in test_oci.py."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import loader
from loader import credentials, oci, oci_client, reference
from loader.store import Blob

DATA = b"0123456789"
BLOB = Blob(hashlib.sha256(DATA).hexdigest(), len(DATA))


@contextmanager
def serve(answer):
    """A server that answers with ``answer(path, headers)``: status, headers, body. Yields its host and what it saw."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            seen.append((self.path, self.headers.get("Authorization")))
            status, headers, body = answer(self.path, self.headers)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # who has been waited for too long is gone
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def client(host, name="fp4:v1"):
    return oci_client.Client(reference.parse(f"{host}/{name}"), True, 1)


def read(host, start=0):
    offset, chunks = client(host).read(BLOB, start)
    return offset, b"".join(chunks)


@pytest.mark.parametrize(("name", "headers"), [
    (f"fp4@sha256:{'0' * 64}", {}),
    (f"fp4:v1@sha256:{'0' * 64}", {"Docker-Content-Digest": f"sha256:{'0' * 64}"}),
    ("fp4:v1", {"Docker-Content-Digest": f"sha256:{'0' * 64}"}),
])  # fmt: skip
def test_a_manifest_of_another_digest_is_refused(name, headers, tmp_path):
    """Than the reference has, whatever the registry says of it; by a tag, than the registry says."""
    with serve(lambda *_: (200, headers, b"{}")) as (host, _):
        with pytest.raises(loader.IntegrityError, match=rf"of {host}/{name} has digest sha256:44\w+, not "):
            oci.pull(f"{host}/{name}", str(tmp_path / "store"), plain_http=True)
    assert not (tmp_path / "store").exists()


def test_a_manifest_has_a_limit(monkeypatch):
    """Of bytes, so that none fills the memory."""
    monkeypatch.setattr(oci_client, "MAX_MANIFEST_BYTES", 100)
    with serve(lambda *_: (200, {}, bytes(101))) as (host, _):
        with pytest.raises(loader.RegistryAnswerError, match="gives a manifest of over 100 bytes"):
            client(host).manifest("any")


def test_ranges_are_taken_as_they_come():
    """The rest where it is given, the whole where not, and another part is an error."""
    def part(path, headers):
        return 206, {"Content-Range": "bytes 4-9/10"}, DATA[4:]

    with serve(part) as (host, _):
        assert read(host, 4) == (4, DATA[4:])
        with pytest.raises(loader.RegistryAnswerError, match="gives another range than bytes 5-"):
            read(host, 5)
    with serve(lambda *_: (200, {}, DATA)) as (host, _):
        assert read(host, 4) == (0, DATA)


def test_a_body_that_ends_early_is_said():
    """It is no content of its own."""
    with serve(lambda *_: (200, {"Content-Length": "20"}, DATA)) as (host, _):
        with pytest.raises(loader.UnreachableError, match=r"cannot be reached: .*IncompleteRead"):
            read(host)


def test_a_silent_registry_is_left(monkeypatch):
    """Neither a pull nor a push waits for ever."""
    monkeypatch.setattr(oci_client, "_TIMEOUT", (0.2, 0.2))
    monkeypatch.setattr(oci_client, "_RETRIES", 0)
    ended = threading.Event()
    with serve(lambda *_: ended.wait(30) and (200, {}, b"")) as (host, _):
        with pytest.raises(loader.UnreachableError, match="timed out"):
            read(host)
        ended.set()


@pytest.mark.parametrize(("status", "error"), [(500, loader.RegistryAnswerError), (418, loader.RegistryAnswerError),
                                               (403, loader.UnauthorizedError), (404, loader.AbsentError)])
def test_errors_say_what_the_registry_said(status, error):
    """Its code and message, or the status where it has none."""
    body = json.dumps({"errors": [{"code": "DENIED", "message": "not today"}]}).encode()
    for content, text in ((body, "DENIED: not today"), (b"<html>", rf"{status} [\w' -]+")):
        with serve(lambda *_, content=content: (status, {}, content)) as (host, seen):
            with pytest.raises(error, match=rf"registry {host} .*: {text}$"):
                read(host)
        assert len(seen) == 1


def test_a_restart_is_waited_for():
    """Of the registry, or of what stands before it: 502 to 504 are asked again, twice."""
    left = [503, 502]
    with serve(lambda *_: (left.pop(), {}, b"") if left else (200, {}, DATA)) as (host, seen):
        assert read(host) == (0, DATA)
    assert len(seen) == 3


def test_passwords_are_for_the_registry(monkeypatch, tmp_path):
    """Storage to which it sends us gets none, though it asks for one; nor does it get that of ~/.netrc."""
    storage_answer = (401, {"WWW-Authenticate": 'Basic realm="storage"'}, b"")
    with serve(lambda *_: storage_answer) as (storage, storage_saw):
        def registry(path, headers):
            if not headers.get("Authorization"):
                return 401, {"WWW-Authenticate": 'Basic realm="registry"'}, b""
            return 307, {"Location": f"http://{storage}/blob"}, b""

        with serve(registry) as (host, registry_saw):
            auth = base64.b64encode(b"user:secret").decode()
            (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
            (tmp_path / ".netrc").write_text("default login other password other\n")
            (tmp_path / ".netrc").chmod(0o600)
            monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
            monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
            with pytest.raises(loader.UnauthorizedError):
                read(host)
    assert [seen for _, seen in registry_saw] == [None, f"Basic {auth}"]
    assert storage_saw == [("/blob", None)]


def test_storage_names_no_server_of_tokens(monkeypatch, tmp_path):
    """For that one would get the password that is for the registry."""
    def storage_answer(path, headers):
        return 401, {"WWW-Authenticate": f'Bearer realm="http://{headers["Host"]}/token"'}, b""

    with serve(storage_answer) as (storage, saw), \
            serve(lambda *_: (307, {"Location": f"http://{storage}/blob"}, b"")) as (host, _):
        (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": "dXNlcjpzZWNyZXQ="}}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        with pytest.raises(loader.UnauthorizedError):
            read(host)
    assert saw == [("/blob", None)]


def test_a_password_stays_on_https(monkeypatch, tmp_path):
    """A registry on HTTPS cannot send it to a server of tokens on HTTP."""
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"registry.example": {"auth": "dXNlcjpzZWNyZXQ="}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    secure = oci_client.Client(reference.parse("registry.example/fp4:v1"), False, 1)
    with pytest.raises(loader.UnauthorizedError, match="credentials of 'user': it asks for 'Bearer"):
        secure._answer('Bearer realm="http://tokens.example/token"')


def test_docker_hub_has_another_name(monkeypatch, tmp_path):
    """In docker's configuration, and for docker's programs."""
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": "YTpiOmM="}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert credentials.find("docker.io") == ("a", "b:c") and credentials.find("ghcr.io") is None
    script = """#!/bin/sh\nprintf '{"Username": "%s", "Secret": "b"}' $(cat)\n"""
    (tmp_path / "docker-credential-test").write_text(script)
    (tmp_path / "docker-credential-test").chmod(0o755)
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "test"}))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert credentials.find("docker.io") == ("https://index.docker.io/v1/", "b")
