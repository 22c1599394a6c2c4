"""push and pull against a real registry: Debian's docker-registry on loopback."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pulled_pack
import pytest
import registry_process
from registry_process import PASSWORD, USER

import loader
from loader import oci
from loader.__main__ import main

if registry_process.PROGRAM is None:
    pytest.skip("needs a registry: docker-registry is not installed", allow_module_level=True)

HTPASSWD = "auth: {{htpasswd: {{realm: packs, path: {path}}}}}"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A registry that anybody may use."""
    with registry_process.serve(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def guarded(tmp_path):
    """A registry that wants a password."""
    (tmp_path / "htpasswd").write_text(registry_process.HTPASSWD)
    with registry_process.serve(tmp_path / "registry", HTPASSWD.format(path=tmp_path / "htpasswd")) as registry:
        yield registry


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """Writes docker's configuration, of which there is none before."""
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return lambda config: (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def name(served, request, tmp_path):
    """A repository of this test, with a pack in ``tmp_path / "pack"`` that was not pushed yet."""
    pulled_pack.write(tmp_path / "pack", request.getfixturevalue("rng"))
    return f"{served.host}/kernels/{tmp_path.name.lower().replace('_', '-').strip('-')}"


def push(tmp_path, name):
    return oci.push(str(tmp_path / "pack"), name, plain_http=True)


def pull(name, place):
    return Path(oci.pull(name, str(place), plain_http=True))


def login(user=USER, password=PASSWORD):
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_push_pull_verify_launch(cuda, name, tmp_path, capsys, monkeypatch):
    """By the commands, by tag and by digest; the directory that pull prints works as LOADER_ARTIFACTS."""
    (tmp_path / "pack" / "manifest.json.sig").write_bytes(b"signature")
    assert main(["push", str(tmp_path / "pack"), f"{name}:v1", "--plain-http"]) == 0
    pushed = capsys.readouterr().out.strip()
    assert pushed.startswith(f"{name}@sha256:")
    for place, reference in ((tmp_path / "tag", f"{name}:v1"), (tmp_path / "digest", pushed)):
        assert main(["pull", reference, "--plain-http", "--store", str(place)]) == 0
        pulled = capsys.readouterr().out.strip()
        pulled_pack.check_finished(place, Path(pulled), pulled_pack.contents(tmp_path / "pack"))
    monkeypatch.setenv("LOADER_ARTIFACTS", pulled)
    assert main(["verify"]) == 0
    from sample_call import arguments

    loader.launch("scale_rows", **arguments())
    assert len(cuda.launches) == 1


def test_only_what_lacks_is_sent(served, name, tmp_path):
    """Neither side sends a blob that the other one has."""
    push(tmp_path, f"{name}:v1")
    pull(f"{name}:v1", tmp_path / "store")
    before = [served.requests("POST", "blobs/uploads"), served.requests("GET", "blobs/sha256")]
    assert min(before) >= len(set(pulled_pack.contents(tmp_path / "pack").values()))
    push(tmp_path, f"{name}:v2")
    pull(f"{name}:v2", tmp_path / "store")
    assert [served.requests("POST", "blobs/uploads"), served.requests("GET", "blobs/sha256")] == before


def test_a_part_is_continued_by_range(served, name, tmp_path):
    """The registry gives the bytes behind it alone."""
    push(tmp_path, f"{name}:v1")
    files = pulled_pack.contents(tmp_path / "pack")
    pull(f"{name}:v1", tmp_path / "whole")
    partial = tmp_path / "store" / "partial"
    partial.mkdir(parents=True)
    parts = [path for path in (tmp_path / "whole" / "blobs" / "sha256").iterdir() if path.stat().st_size > 50_000][:3]
    for path, size in zip(parts, (1, 20_000, parts[2].stat().st_size), strict=True):
        (partial / path.name).write_bytes(path.read_bytes()[:size])
    before = served.requests("GET 206", "blobs/sha256"), served.requests("GET", "blobs/sha256")
    pulled = pull(f"{name}:v1", tmp_path / "store")
    pulled_pack.check_finished(tmp_path / "store", pulled, files)
    after = served.requests("GET 206", "blobs/sha256"), served.requests("GET", "blobs/sha256")
    assert (after[0] - before[0], after[1] - before[1]) == (2, len(set(files.values())) - 1)


def test_killed_at_random_points(name, tmp_path, seed):
    """SIGKILL at 20 of the places where a pull opens, links, renames, connects or receives something."""
    push(tmp_path, f"{name}:v1")
    pulled_pack.check_kills(tmp_path, seed, f"{name}:v1", lambda place: pull(f"{name}:v1", place),
                            pulled_pack.contents(tmp_path / "pack"))


def test_two_pulls_at_once_do_the_work_once(served, name, tmp_path):
    """Two processes, one store: every blob is read once, and both have the pack."""
    push(tmp_path, f"{name}:v1")
    files = pulled_pack.contents(tmp_path / "pack")
    before = served.requests("GET", "blobs/sha256")
    command = [sys.executable, "-m", "loader", "pull", f"{name}:v1", "--plain-http", "--store", str(tmp_path / "store")]
    processes = [subprocess.Popen(command, cwd=pulled_pack.ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0] and len(printed) == 1
    pulled_pack.check_finished(tmp_path / "store", Path(printed.pop()), files)
    assert served.requests("GET", "blobs/sha256") - before == len(set(files.values()))


def test_what_is_absent_is_named(name, tmp_path):
    """A tag, a repository, a digest: nothing is written."""
    push(tmp_path, f"{name}:v1")
    for absent, path in ((f"{name}:v2", "manifests/v2"), (f"{name}-other:v1", "-other/manifests/v1"),
                         (f"{name}@sha256:{'0' * 64}", f"manifests/sha256:{'0' * 64}")):
        with pytest.raises(loader.AbsentError, match=f"has no .*{path}: (MANIFEST|NAME)_UNKNOWN: "):
            pull(absent, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def damage(served, sha256):
    """Change the last byte of what the registry has under a digest."""
    path = served.root / "docker/registry/v2/blobs/sha256" / sha256[:2] / sha256 / "data"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_what_the_registry_lost_is_found(served, name, tmp_path):
    """Changed bytes of a blob, and of a manifest that is pulled by digest: no pack can be seen."""
    pushed = push(tmp_path, f"{name}:v1")
    blob = pulled_pack.sample_pack.stored("", (tmp_path / "pack" / "scale_rows/sm_90a/m16_f32.cubin").read_bytes())
    damage(served, blob["sha256"])
    with pytest.raises(loader.IntegrityError, match=f"sha256:{blob['sha256']} of {blob['size']} bytes came as"):
        pull(pushed, tmp_path / "store")
    damage(served, pushed[-64:])
    with pytest.raises(loader.LoaderError) as caught:  # this registry looks itself, others give what they have
        pull(pushed, tmp_path / "other")
    assert isinstance(caught.value, loader.IntegrityError | loader.RegistryAnswerError | loader.AbsentError)
    assert not list(tmp_path.glob("*/packs/*"))


def test_who_cannot_be_reached_is_named(served, tmp_path):
    """Nobody listens, or HTTP is spoken where HTTPS is the rule."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(loader.UnreachableError, match=f"registry {host} cannot be reached: .*refused"):
            pull(f"{host}/fp4:v1", tmp_path / "store")
    with pytest.raises(loader.UnreachableError, match="cannot be reached: .*; --plain-http speaks HTTP"):
        oci.pull(f"{served.host}/fp4:v1", str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_registry_with_a_password(guarded, docker, tmp_path, rng, monkeypatch):
    """It comes from docker's configuration or the helper that this names; wrong or none is an error that says so."""
    pulled_pack.write(tmp_path / "pack", rng)
    name = f"{guarded.host}/kernels/fp4:v1"
    with pytest.raises(loader.UnauthorizedError, match="no credentials in docker's configuration: it asks for 'Basic"):
        push(tmp_path, name)
    docker({"auths": {guarded.host: login(password="wrong")}})
    with pytest.raises(loader.UnauthorizedError, match=f"registry {guarded.host} refuses HEAD"):
        push(tmp_path, name)
    docker({"auths": {guarded.host: {"auth": "!"}}})
    with pytest.raises(loader.UnauthorizedError, match="config.json has no credentials .* that can be read"):
        push(tmp_path, name)
    docker({"auths": {guarded.host: login()}})
    push(tmp_path, name)
    docker({"credHelpers": {guarded.host: "test"}})
    with pytest.raises(loader.UnauthorizedError, match="names the program docker-credential-test, which cannot run"):
        pull(name, tmp_path / "store")
    helper = tmp_path / "docker-credential-test"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for script, text in (("echo credentials not found in native keychain; exit 1", "no credentials in docker's"),
                         ("echo locked >&2; exit 3", "docker-credential-test, .*, exited with 3: locked"),
                         ("echo '{}'", "gave no Username and Secret")):  # fmt: skip
        helper.write_text(f"#!/bin/sh\n{script}\n")
        helper.chmod(0o755)
        with pytest.raises(loader.UnauthorizedError, match=text):
            pull(name, tmp_path / "store")
    answer = json.dumps({"Username": USER, "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\ntest \"$(cat)\" = {guarded.host} && echo '{answer}'\n")
    pulled_pack.check_finished(tmp_path / "store", pull(name, tmp_path / "store"),
                               pulled_pack.contents(tmp_path / "pack"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a server of tokens")
def test_a_registry_with_tokens(docker, tmp_path, rng):
    """One token is for reading, and pushing has the registry ask for another one."""
    pulled_pack.write(tmp_path / "pack", rng)
    with registry_process.token_server(tmp_path) as (auth, scopes), \
            registry_process.serve(tmp_path / "registry", auth) as guarded:
        name = f"{guarded.host}/kernels/fp4:v1"
        with pytest.raises(loader.UnauthorizedError, match="no credentials in .*: http://.*/token gives no token"):
            push(tmp_path, name)
        docker({"auths": {guarded.host: login()}})
        push(tmp_path, name)
        assert "repository:kernels/fp4:pull" in scopes and len(set(scopes)) == 2
        pulled_pack.check_finished(tmp_path / "store", pull(name, tmp_path / "store"),
                                   pulled_pack.contents(tmp_path / "pack"))
