"""A registry of its own process on loopback, Debian's docker-registry, and what its log says of requests."""

import base64
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PROGRAM = shutil.which("docker-registry")
USER, PASSWORD = "user", "secret"
# bcrypt of the password, which is the one form that the registry reads.
HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


class Registry:
    """``host`` is its name in references, ``root`` where its files lie."""

    def __init__(self, folder, host):
        self.host, self.root, self._log = host, folder / "data", folder / "log"
        self._marks = 0

    def requests(self, method, kind):
        """Number of answers so far to requests of a method for ``blobs/sha256``, ``blobs/uploads`` or ``manifests``.

        A read that gave a range counts as ``GET 206``.
        """
        self._marks += 1
        mark = f"/v2/?mark={self._marks}"
        urllib.request.urlopen(f"http://{self.host}{mark}").close()
        while f'{mark} ' not in (text := self._log.read_text()):  # a line of the log follows its answer
            time.sleep(0.05)
        method, _, status = method.partition(" ")
        return len(re.findall(rf'"{method} /v2/\S*/{kind}[^"]*" {status or "20"}', text))


@contextmanager
def serve(folder, auth=""):
    """A registry whose configuration has ``auth``, a line of YAML."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "config.yml").write_text(f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\n"
                                       f"http: {{addr: '{host}'}}\n{auth}\n")
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([PROGRAM, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        for _ in range(200):
            assert process.poll() is None, (folder / "log").read_text()
            if _answers(f"http://{host}/v2/"):
                break
            time.sleep(0.05)
        yield Registry(folder, host)
    finally:
        process.terminate()
        process.wait()


def _answers(url):
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True  # it wants to know who asks
    except OSError:
        return False
    return True


@contextmanager
def token_server(folder):
    """A server of tokens for who knows the password, the line of YAML that has a registry ask for them, and a list of
    the scopes that were asked for."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate,
                    "-days", "2", "-subj", "/CN=tokens"], check=True, capture_output=True)
    chain = ["".join(certificate.read_text().splitlines()[1:-1])]
    scopes = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            wanted = parse_qs(urlsplit(self.path).query).get("scope", [])
            if self.headers.get("Authorization") != BASIC:
                self.send_error(401)
                return
            scopes.extend(wanted)
            body = json.dumps({"token": _token(key, chain, wanted)}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    realm = f"http://127.0.0.1:{server.server_port}/token"
    try:
        yield (f"auth: {{token: {{realm: '{realm}', service: packs, issuer: tokens, rootcertbundle: {certificate}}}}}",
               scopes)
    finally:
        server.shutdown()
        server.server_close()


def _token(key, chain, scopes):
    """A JSON Web Token for the scopes, such as ``repository:fp4:pull``."""
    access = [dict(zip(("type", "name", "actions"), scope.split(":"), strict=True)) for scope in scopes]
    claims = {"iss": "tokens", "aud": "packs", "sub": USER, "exp": time.time() + 60, "nbf": time.time() - 60,
              "access": [entry | {"actions": entry["actions"].split(",")} for entry in access]}
    claims |= {name: int(claims[name]) for name in ("exp", "nbf")}
    signed = b".".join(_base64(json.dumps(part).encode())
                       for part in ({"typ": "JWT", "alg": "RS256", "x5c": chain}, claims))
    signature = subprocess.run(["openssl", "dgst", "-sha256", "-sign", key], input=signed, capture_output=True,
                               check=True).stdout
    return (signed + b"." + _base64(signature)).decode()


def _base64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")
