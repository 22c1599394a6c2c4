"""Speaks to one repository of an OCI registry, with ``requests``: blobs and manifests by digest, nothing of packs.

Imported by the first push or pull alone, for the loader itself needs no library. The protocol is the distribution
specification of OCI, 1.1; a client may be used from several threads.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import parse_http_list, parse_keqv_list

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from . import credentials
from .errors import AbsentError, IntegrityError, RegistryAnswerError, UnauthorizedError, UnreachableError
from .manifest import MAX_MANIFEST_BYTES
from .reference import Reference
from .store import CHUNK_BYTES, Blob

_TIMEOUT = (10, 60)  # seconds until a connection stands, and between bytes
# What a restart of a registry or its proxy looks like. A server does not say how long to wait: it might be an hour.
_RETRIES = Retry(total=2, backoff_factor=0.5, status_forcelist=(502, 503, 504), respect_retry_after_header=False,
                 raise_on_status=False)
_HOSTS = {"docker.io": "registry-1.docker.io"}


class _Session(requests.Session):
    """One that says to nobody but a registry who one is, and that by docker's configuration alone."""

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Where a redirect leads elsewhere nothing goes along, nor does what ``~/.netrc`` has for that place."""
        if self.should_strip_auth(response.request.url, prepared_request.url):
            prepared_request.headers.pop("Authorization", None)


class Client:
    """A repository. ``plain_http`` speaks HTTP where HTTPS is the rule; ``connections`` are kept for threads."""

    def __init__(self, reference: Reference, plain_http: bool, connections: int) -> None:
        self._reference, self._scheme = reference, "http" if plain_http else "https"
        host = _HOSTS.get(reference.registry, reference.registry)
        self._base = f"{self._scheme}://{host}/v2/{reference.repository}/"
        self._authorization: str | None = None
        self._session = _Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=_RETRIES, pool_maxsize=connections))
        self._session.auth = lambda request: request  # or those of ~/.netrc would replace our own
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def manifest(self, media_type: str) -> bytes:
        """The manifest that the reference names; its digest is that of the reference, or the one that comes with it."""
        sha256 = self._reference.sha256
        name = f"sha256:{sha256}" if sha256 else self._reference.tag
        url = urljoin(self._base, f"manifests/{name}")
        response = self._request("GET", url, (200,), headers={"Accept": media_type}, stream=True)
        data = b""
        for chunk in self._chunks(response):
            data += chunk
            if len(data) > MAX_MANIFEST_BYTES:
                raise self._unexpected(response, f"gives a manifest of over {MAX_MANIFEST_BYTES} bytes")
        expected = f"sha256:{sha256}" if sha256 else response.headers.get("Docker-Content-Digest")
        _check_digest(str(self._reference), data, expected)
        return data

    def put_manifest(self, media_type: str, data: bytes) -> None:
        """Put a manifest under the reference's tag, once all it names is there."""
        url = urljoin(self._base, f"manifests/{self._reference.tag}")
        response = self._request("PUT", url, (201,), headers={"Content-Type": media_type}, data=data)
        _check_digest(str(self._reference), data, response.headers.get("Docker-Content-Digest"))

    def has(self, blob: Blob) -> bool:
        """Whether the repository has a blob."""
        url = urljoin(self._base, f"blobs/{blob.digest}")
        return self._request("HEAD", url, (200, 404)).status_code == 200

    def upload(self, blob: Blob, data: bytes) -> None:
        """Upload a blob, in one request."""
        started = self._request("POST", urljoin(self._base, "blobs/uploads/"), (202,))
        if "Location" not in started.headers:
            raise self._unexpected(started, "names no place for an upload")
        self._request("PUT", urljoin(started.url, started.headers["Location"]), (201,), params={"digest": blob.digest},
                      headers={"Content-Type": "application/octet-stream"}, data=data)

    def read(self, blob: Blob, start: int) -> tuple[int, Iterator[bytes]]:
        """Bytes of a blob from ``start`` on, or from 0 on where the registry gives no ranges, and where they begin."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        response = self._request("GET", urljoin(self._base, f"blobs/{blob.digest}"), (200, 206), headers=headers,
                                 stream=True)
        offset = start if response.status_code == 206 else 0
        if offset and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            raise self._unexpected(response, f"gives another range than bytes {offset}-")
        return offset, self._chunks(response)

    def _chunks(self, response: requests.Response) -> Iterator[bytes]:
        with response:
            try:
                yield from response.iter_content(CHUNK_BYTES)
            except requests.RequestException as error:
                raise self._unreachable(response.url, error) from error

    def _request(self, method: str, url: str, expected: tuple[int, ...], headers: dict[str, str] | None = None,
                 **options: Any) -> requests.Response:
        """An answer of one of the ``expected`` statuses; who one is, is said where the registry asks for it."""
        options["allow_redirects"] = method in ("GET", "HEAD")  # an upload goes where it was told, and nowhere else
        for last in (False, True):
            given = dict(headers or {})
            if self._authorization and self._is_ours(url):
                given["Authorization"] = self._authorization
            response = self._send(method, url, headers=given, **options)
            if response.status_code != 401 or last or not self._is_ours(response.url):
                break
            response.close()
            self._authorization = self._answer(response.headers.get("WWW-Authenticate", ""))
        if response.status_code in expected:
            return response
        if response.status_code in (401, 403):
            raise UnauthorizedError(f"registry {self._reference.registry} refuses {method} {url}: {_said(response)}",
                                    registry=self._reference.registry, url=url)
        if response.status_code == 404:
            raise AbsentError(f"registry {self._reference.registry} has no {urlsplit(url).path.removeprefix('/v2/')}: "
                              f"{_said(response)}", registry=self._reference.registry, url=url)
        raise self._unexpected(response, f"answers {response.status_code} to {method} {url}: {_said(response)}")

    def _is_ours(self, url: str) -> bool:
        """Whether an address is of the registry itself: storage to which it leads us learns nothing of who we are."""
        return urlsplit(url)[:2] == urlsplit(self._base)[:2]

    def _send(self, method: str, url: str, **options: Any) -> requests.Response:
        try:
            return self._session.request(method, url, timeout=_TIMEOUT, **options)
        except requests.RequestException as error:
            raise self._unreachable(url, error) from error

    def _answer(self, challenge: str) -> str:
        """The header that answers a challenge: user and password, or a token that a server gives for them."""
        scheme, _, rest = challenge.partition(" ")
        fields = parse_keqv_list(parse_http_list(rest)) if "=" in rest else {}
        known = credentials.find(self._reference.registry)
        if scheme.lower() == "basic" and known:
            return "Basic " + b64encode(":".join(known).encode()).decode()
        # A password for a registry on HTTPS goes nowhere in plain text.
        if scheme.lower() == "bearer" and fields.get("realm", "").startswith(("https://", f"{self._scheme}://")):
            token, refusal = self._token(fields, known)
            if token:
                return f"Bearer {token}"
        else:
            refusal = f"it asks for {challenge!r}"
        whose = f"credentials of {known[0]!r}" if known else "no credentials in docker's configuration"
        raise UnauthorizedError(f"registry {self._reference.registry} cannot be used with {whose}: {refusal}",
                                registry=self._reference.registry)

    def _token(self, fields: dict[str, str], known: tuple[str, str] | None) -> tuple[str | None, str]:
        """A token of the server that a challenge names, or None and what it says instead."""
        wanted = {key: fields[key] for key in ("service", "scope") if key in fields}
        response = self._send("GET", fields["realm"], params=wanted, auth=known)
        try:
            answer = response.json()
            token = answer.get("token") or answer.get("access_token")
        except (ValueError, AttributeError):
            token = None
        return token, f"{fields['realm']} gives no token: {_said(response)}"

    def _unreachable(self, url: str, error: Exception) -> UnreachableError:
        hint = "; --plain-http speaks HTTP" if isinstance(error, requests.exceptions.SSLError) else ""
        return UnreachableError(f"registry {self._reference.registry} cannot be reached: {error}{hint}",
                                registry=self._reference.registry, url=url)

    def _unexpected(self, response: requests.Response, text: str) -> RegistryAnswerError:
        response.close()
        return RegistryAnswerError(f"registry {self._reference.registry} {text}", registry=self._reference.registry,
                                   url=response.url, status=response.status_code)


def _check_digest(name: str, data: bytes, expected: str | None) -> None:
    got = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if expected is not None and expected != got:
        raise IntegrityError(f"the manifest of {name} has digest {got}, not {expected}", expected=expected, got=got)


def _said(response: requests.Response) -> str:
    """The first words of an error."""
    try:
        errors = response.json()["errors"]
        return "; ".join(f"{error['code']}: {error.get('message', '')}" for error in errors)[:200]
    except (ValueError, KeyError, TypeError, requests.RequestException):
        return f"{response.status_code} {response.reason}"
