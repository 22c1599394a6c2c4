"""Whose packs are used: the policy of a call, the keys that its user pins, and signatures held against them.

A signature is made over the bytes of a manifest, which names the sha256 of every other file of its pack.
docs/manifest.md has the format of the file. ``cryptography`` is imported where keys are read, and nowhere else.
"""

from __future__ import annotations

import hashlib
import os
import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .errors import (
    KeyFileError,
    MissingPackageError,
    SignatureSyntaxError,
    TrustError,
    UntrustedSignerError,
    WrongSignatureError,
)

POLICY_VARIABLE = "LOADER_SIGNATURES"
KEYS_VARIABLE = "LOADER_KEYS"
POLICIES = ("off", "warn", "require")

SIGNATURE_NAME = "manifest.json.sig"
MAX_SIGNERS = 64
_LINE = re.compile(rb"ed25519 ([0-9a-f]{64}) ([0-9a-f]{128})\n")
_LINE_TEXT = "ed25519 <64 hex digits> <128 hex digits>"
MAX_SIGNATURE_BYTES = MAX_SIGNERS * (len("ed25519") + 64 + 128 + 3)
# Ed25519 takes about 120 of them. Numbers of other kinds of keys, Diffie-Hellman's among them, are looked at as they
# are read, before anybody can ask for the kind: 512 bytes of them take half a second, 4 KiB over a minute.
MAX_KEY_BYTES = 512


class Trust(NamedTuple):
    """Whose packs a call uses.

    ``policy``: ``"require"`` refuses a pack without the signature of a pinned key, ``"warn"`` warns of it, ``"off"``
    looks at none. ``keys``: files with a public key each, one path or several; None takes those of ``LOADER_KEYS``.
    """

    policy: str = "require"
    keys: Any = None


OFF = Trust("off", ())


class Pinned(NamedTuple):
    """A policy and the public keys of its user by their ids."""

    policy: str
    keys: Mapping[str, Any]


def asked(trust: Trust | None) -> Trust:
    """The argument ``trust`` of a call, or what the environment says where it is None; files as absolute paths."""
    if trust is None:
        policy, keys, source = os.environ.get(POLICY_VARIABLE) or "off", None, POLICY_VARIABLE
    elif isinstance(trust, Trust):
        policy, keys, source = trust.policy, trust.keys, "trust"
    else:
        raise TrustError(f"trust: expected a loader.Trust or None, got {trust!r}", expected="Trust", got=trust)
    if policy not in POLICIES:
        raise TrustError(f"{source}: expected one of {', '.join(POLICIES)}, got {policy!r}", expected=POLICIES,
                         got=policy)
    if policy == "off":
        return OFF
    files = _files_given(keys)
    if policy == "require" and not files:
        raise TrustError(f"{source} requires signatures, and no key is pinned: expected files of public keys in "
                         f"{KEYS_VARIABLE} or in Trust(keys=...)", expected="keys", got=())
    return Trust(policy, files)


def _files_given(keys: Any) -> tuple[str, ...]:
    """Key files of an argument, or of the environment, as absolute paths."""
    if keys is None:
        keys = [entry for entry in os.environ.get(KEYS_VARIABLE, "").split(os.pathsep) if entry]
    try:
        given = map(os.fsdecode, [keys] if isinstance(keys, (str, bytes, os.PathLike)) else keys)
        return tuple([os.path.abspath(path) for path in given])
    except TypeError:
        raise TrustError(f"trust: expected key files, one path or several, got {keys!r}", expected="paths",
                         got=keys) from None


# Keys


def _cryptography() -> Any:
    """The module of Ed25519 keys, and the one that reads key files."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingPackageError(f"signatures need the package cryptography, which cannot be imported ({error}); the "
                                  "extra `signing` brings it: pip install 'block-scaled[signing]'",
                                  missing="cryptography", extra="signing") from error
    return ed25519, serialization


def read_public_key(file: str) -> Any:
    """The one Ed25519 public key of a PEM file."""
    ed25519, serialization = _cryptography()
    return _read_key(file, "a public Ed25519 key", serialization.load_pem_public_key, ed25519.Ed25519PublicKey)


def read_private_key(file: str) -> Any:
    """The one Ed25519 private key of a PEM file, which has no password."""
    ed25519, serialization = _cryptography()
    return _read_key(file, "a private Ed25519 key without a password",
                     lambda data: serialization.load_pem_private_key(data, None), ed25519.Ed25519PrivateKey)


def _read_key(file: str, expected: str, load: Any, kind: type) -> Any:
    from cryptography.exceptions import InternalError, UnsupportedAlgorithm

    facts = {"file": file, "expected": expected}
    try:
        with open(file, "rb") as stream:
            data = stream.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"key file {file} cannot be read: {error.strerror}", **facts, got=error.strerror) from error
    count = data.count(b"-----BEGIN ")
    if count != 1 or len(data) > MAX_KEY_BYTES:  # of several the reader would take the first and be silent
        got = f"{count} in the first {len(data)} bytes"
        raise KeyFileError(f"key file {file}: expected {expected}, one block of PEM in at most {MAX_KEY_BYTES} bytes, "
                           f"got {got}", **facts, got=got)
    try:
        key = load(data)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:  # the last: a short Ed448
        raise KeyFileError(f"key file {file}: expected {expected} in PEM, got none ({' '.join(str(error).split())})",
                           **facts, got=None) from error
    if not isinstance(key, kind):
        got = type(key).__name__
        raise KeyFileError(f"key file {file}: expected {expected} in PEM, got {got}", **facts, got=got)
    return key


def key_id(key: Any) -> str:
    """sha256 (hex) of a public key as ``openssl pkey -pubin -outform DER`` writes it."""
    _, serialization = _cryptography()
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER,
                                           serialization.PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def pinned(trust: Trust) -> Pinned:
    """The policy with its key files read; ``trust`` is what ``asked`` returns."""
    keys = [read_public_key(file) for file in trust.keys]
    return Pinned(trust.policy, {key_id(key): key for key in keys})


# Signatures


def from_text(data: bytes, pack: str) -> dict[str, bytes]:
    """The signatures of a signature file by the ids of their keys."""
    where, facts = f"{SIGNATURE_NAME} in pack {pack}", {"pack": pack, "file": SIGNATURE_NAME}
    if len(data) > MAX_SIGNATURE_BYTES:
        raise SignatureSyntaxError(f"{where} is over {MAX_SIGNATURE_BYTES} bytes, {MAX_SIGNERS} signatures", **facts,
                                   expected=MAX_SIGNATURE_BYTES, got=len(data))
    found: dict[str, bytes] = {}
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise SignatureSyntaxError(f"{where}, line {number}: expected {_LINE_TEXT!r} and a newline, got "
                                       f"{reprlib.repr(line)}", **facts, expected=_LINE_TEXT, got=line)
        signer = match[1].decode()
        if signer in found:
            raise SignatureSyntaxError(f"{where}, line {number}: a second signature of key {signer}", **facts,
                                       expected="one signature of a key", got=signer)
        found[signer] = bytes.fromhex(match[2].decode())
    if not found:
        raise SignatureSyntaxError(f"{where} holds no signature", **facts, expected=_LINE_TEXT, got=data)
    return found


def to_text(signatures: Mapping[str, bytes]) -> bytes:
    """The signature file of these signatures, by the ids of their keys."""
    return "".join(f"ed25519 {signer} {signatures[signer].hex()}\n" for signer in sorted(signatures)).encode()


def signers(manifest: bytes, signature: bytes, keys: Mapping[str, Any], pack: str) -> tuple[str, ...]:
    """Ids of the pinned keys that signed the bytes of a manifest.

    There must be one, and every signature of a pinned key must hold. Those of other keys count for nothing.
    """
    from_all = from_text(signature, pack)
    known = [signer for signer in from_all if signer in keys]
    if not known:
        raise UntrustedSignerError(f"{SIGNATURE_NAME} in pack {pack}: no pinned key has signed; signed by "
                                   f"{_listed(from_all)}, pinned are {_listed(keys)}", pack=pack, file=SIGNATURE_NAME,
                                   expected=list(keys), got=list(from_all))
    for signer in known:
        _check(keys[signer], signer, from_all[signer], manifest, pack)
    return tuple(known)


def _check(key: Any, signer: str, signature: bytes, manifest: bytes, pack: str) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        raise WrongSignatureError(f"{SIGNATURE_NAME} in pack {pack}: the signature of key {signer} is not one of this "
                                  "manifest", pack=pack, file=SIGNATURE_NAME, signer=signer) from None


def _listed(ids: Iterable[str]) -> str:
    return ", ".join(ids) or "none"
