"""Signed packs: whose keys count, by argument and by environment, and how a pack is signed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sample_pack
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from key_files import Owner, private_pem, public_pem
from sample_call import arguments
from test_composite import composite

import loader
from loader import registry, signing, trust
from loader.__main__ import main

ROOT = Path(__file__).resolve().parents[3]
MANIFEST, FILES = sample_pack.build(archs=("120a",))
# Of the private key of bytes 0 to 31, by openssl: both PEM files, the public key's id, the signature of "{}\n".
PRIVATE = b"""-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f
-----END PRIVATE KEY-----
"""
PUBLIC = b"""-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAA6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=
-----END PUBLIC KEY-----
"""
ID = "a050837d85070582ccf7394b0988847cc312cb88259b894899f6f239cf1791a5"
SIGNATURE = ("8fba1e363814c16583f3ba4296792e8d52d3f0b8ae977c743f39519887e18a1d"
             "fa1c3c4885420b9f7a599cd13f28df3b4a2a65dffc74543f25cc34fd1833040c")

CALLS = {
    "launch": lambda **given: loader.launch("scale_rows", **arguments(), **given),
    "plan": lambda **given: loader.plan("scale_rows", **arguments(), **given),
    "check": lambda **given: loader.check("scale_rows", **arguments(m=0), **given),
    "preload": lambda **given: loader.preload("scale_rows", device=0, **given),
    "explain": lambda **given: loader.explain("scale_rows", M=96, K=64, E=3, top=4, device="120a", **given),
    "workspace_bytes": lambda **given: loader.workspace_bytes("thrice", M=24, K=64, E=3, R=1, alpha=1.0, first="f32",
                                                              **given),
    "kernels": lambda **given: loader.kernels(**given),
    "verify": lambda **given: loader.verify(**given),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture
def alice(tmp_path):
    return Owner(tmp_path, "alice")


@pytest.fixture
def bob(tmp_path):
    return Owner(tmp_path, "bob")


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """The directory of a pack with a composite that nobody has signed, which the environment names."""
    manifest = {**MANIFEST, "schema": 2, "composites": {"thrice": composite()}}
    sample_pack.write(tmp_path / "pack", manifest, FILES)
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(tmp_path / "pack"))
    return str(tmp_path / "pack")


def signature_file(pack):
    return Path(pack) / trust.SIGNATURE_NAME


# The format


def test_the_format_is_that_of_openssl(tmp_path, monkeypatch):
    """Key files, ids and signatures are what openssl makes of the same key and bytes."""
    (tmp_path / "private.pem").write_bytes(PRIVATE)
    (tmp_path / "public.pem").write_bytes(PUBLIC)
    private = trust.read_private_key(str(tmp_path / "private.pem"))
    keys = trust.pinned(loader.Trust("require", (str(tmp_path / "public.pem"),))).keys
    assert list(keys) == [trust.key_id(private.public_key())] == [ID]
    text = trust.to_text({ID: private.sign(b"{}\n")})
    assert text.decode() == f"ed25519 {ID} {SIGNATURE}\n"
    assert trust.signers(b"{}\n", text, keys, "pack") == (ID,)


# Policies


@each_call
def test_every_call_takes_trust(cuda, pack, alice, call):
    """It is refused where the pack is not signed, and goes on where it is."""
    required = loader.Trust("require", alice.public)
    with pytest.raises(loader.UnsignedError, match="is not signed: manifest.json.sig is missing"):
        call(trust=required)
    assert not cuda.calls
    signing.sign(pack, alice.private)
    call(trust=required)


@each_call
def test_what_was_read_under_off_is_not_served_under_require(cuda, pack, alice, monkeypatch, call):
    """By argument, and by an environment that is read anew, however often the call was made before."""
    for _ in range(2):
        call()
        call(trust=loader.Trust("off"))
    calls = len(cuda.calls)
    with pytest.raises(loader.UnsignedError):
        call(trust=loader.Trust("require", alice.public))
    monkeypatch.setenv(trust.KEYS_VARIABLE, alice.public)
    monkeypatch.setenv(trust.POLICY_VARIABLE, "require")
    loader.reload()
    with pytest.raises(loader.UnsignedError):
        call()
    assert len(cuda.calls) == calls


def test_what_was_read_with_one_key_is_not_served_with_another(cuda, pack, alice, bob):
    """Keys are a part of what a call asks."""
    signing.sign(pack, alice.private)
    CALLS["launch"](trust=loader.Trust("require", alice.public))
    with pytest.raises(loader.UntrustedSignerError):
        CALLS["launch"](trust=loader.Trust("require", bob.public))
    assert len(cuda.launches) == 1


def test_packs_are_not_checked_by_default(cuda, pack, bob):
    """Whatever stands in the signature file, and also where the variables are empty."""
    signature_file(pack).write_text("nonsense")
    CALLS["launch"]()
    assert len(cuda.launches) == 1


@pytest.mark.parametrize("policy,refused", [("", False), ("off", False), ("warn", False), ("require", True)])
def test_policy_of_the_environment(cuda, pack, alice, bob, monkeypatch, policy, refused):
    """LOADER_SIGNATURES, with files of keys in LOADER_KEYS, joined like PATH; relative ones are of the directory."""
    signing.sign(pack, alice.private)
    monkeypatch.chdir(Path(alice.public).parent)
    monkeypatch.setenv(trust.POLICY_VARIABLE, policy)
    monkeypatch.setenv(trust.KEYS_VARIABLE, os.pathsep.join([bob.public, "alice.pub.pem", ""]))
    CALLS["launch"]()
    signature_file(pack).unlink()
    registry._registries.clear()
    loader.api._calls.clear()
    if refused:
        with pytest.raises(loader.UnsignedError):
            CALLS["launch"]()
    elif policy == "warn":
        with pytest.warns(RuntimeWarning, match="UnsignedError"):
            CALLS["launch"]()
    else:
        CALLS["launch"]()
    assert len(cuda.launches) == 2 - refused


@each_call
def test_argument_before_environment(cuda, pack, alice, bob, monkeypatch, call):
    """A policy that is given is used alone; its keys are the environment's where it names none."""
    signing.sign(pack, alice.private)
    monkeypatch.setenv(trust.POLICY_VARIABLE, "require")
    monkeypatch.setenv(trust.KEYS_VARIABLE, bob.public)
    for given in (None, loader.Trust(), loader.Trust("require")):
        with pytest.raises(loader.UntrustedSignerError):
            call(trust=given)
    assert not cuda.calls
    call(trust=loader.Trust("off"))
    call(trust=loader.Trust("require", [alice.public]))
    monkeypatch.setenv(trust.KEYS_VARIABLE, alice.public)
    call(trust=loader.Trust())


def test_a_relative_key_file_is_one_of_the_directory_of_the_call(cuda, pack, tmp_path, monkeypatch):
    """As a relative pack is: the same words may name another key later."""
    for name in "ab":
        (tmp_path / name).mkdir()
    mine, other = (Owner(tmp_path / name, "key") for name in "ab")
    signing.sign(pack, mine.private)
    monkeypatch.chdir(Path(mine.public).parent)
    CALLS["launch"](trust=loader.Trust("require", "key.pub.pem"))
    monkeypatch.chdir(Path(other.public).parent)
    with pytest.raises(loader.UntrustedSignerError):
        CALLS["launch"](trust=loader.Trust("require", "key.pub.pem"))
    assert len(cuda.launches) == 1


def test_warn_warns_and_goes_on(cuda, pack, alice, bob, tmp_path):
    """With the text of the error, for every pack; also where no key is pinned."""
    warn = [loader.Trust("warn", keys) for keys in (alice.public, [])]
    for each in warn:
        with pytest.warns(RuntimeWarning, match=re.escape(f"UnsignedError: pack {pack} is not signed")):
            CALLS["launch"](trust=each)
    other = signing.sign(pack, bob.private)
    sample_pack.write(tmp_path / "copy", MANIFEST, FILES)
    (tmp_path / "copy" / trust.SIGNATURE_NAME).write_bytes(signature_file(pack).read_bytes())
    signature_file(pack).write_text("nonsense")
    with pytest.warns(RuntimeWarning) as caught:
        loader.kernels([pack, str(tmp_path / "copy")], loader.Trust("warn", bob.public))
    assert [str(warning.message).split(":")[0] for warning in caught] == ["SignatureSyntaxError", "WrongSignatureError"]
    assert other in str(caught[1].message) and len(cuda.launches) == 2


def test_warn_is_silent_where_all_is_well(cuda, pack, alice):
    """A warning of this project is an error of its tests."""
    signing.sign(pack, alice.private)
    CALLS["launch"](trust=loader.Trust("warn", alice.public))
    assert len(cuda.launches) == 1


def test_every_pack_must_be_signed(tmp_path, alice, bob):
    """Each by any of the pinned keys."""
    packs = [str(tmp_path / name) for name in "ab"]
    for directory, owner in zip(packs, (alice, bob), strict=True):
        sample_pack.write(Path(directory), MANIFEST, FILES)
        signing.sign(directory, owner.private)
    loader.kernels(packs, loader.Trust("require", [alice.public, bob.public]))
    with pytest.raises(loader.UntrustedSignerError, match=re.escape(packs[1])):
        loader.kernels(packs, loader.Trust("require", [alice.public]))


# What cannot be asked


@pytest.mark.parametrize("word", ["Require", "on", "1", 1, True, None, ["require"]])
def test_an_unknown_policy_is_an_error(cuda, pack, alice, monkeypatch, word):
    """It is never taken for `off`."""
    with pytest.raises(loader.TrustError) as caught:
        CALLS["launch"](trust=loader.Trust(word, alice.public))
    assert str(caught.value) == f"trust: expected one of off, warn, require, got {word!r}"
    monkeypatch.setenv(trust.POLICY_VARIABLE, str(word))
    with pytest.raises(loader.TrustError, match="^LOADER_SIGNATURES: expected one of off, warn, require, got "):
        CALLS["launch"]()
    assert not cuda.calls


@pytest.mark.parametrize("given", ["require", ("require", ["a.pem"]), 1, {}])
def test_trust_is_a_trust(pack, given):
    """Other objects are refused, whatever they look like."""
    with pytest.raises(loader.TrustError, match="trust: expected a loader.Trust or None, got "):
        loader.kernels(trust=given)
    with pytest.raises(loader.TrustError, match="expected key files, one path or several, got 1"):
        loader.kernels(trust=loader.Trust("require", 1))


@pytest.mark.parametrize("keys", [None, [], ()])
def test_require_without_keys_is_an_error(cuda, pack, alice, monkeypatch, keys):
    """By argument and by environment; any signature would do otherwise."""
    signing.sign(pack, alice.private)
    with pytest.raises(loader.TrustError, match="no key is pinned: expected files of public keys in LOADER_KEYS"):
        CALLS["launch"](trust=loader.Trust("require", keys))
    monkeypatch.setenv(trust.POLICY_VARIABLE, "require")
    monkeypatch.setenv(trust.KEYS_VARIABLE, os.pathsep)
    with pytest.raises(loader.TrustError, match="LOADER_SIGNATURES requires signatures, and no key is pinned"):
        CALLS["launch"]()
    assert not cuda.calls


def bad_keys(alice):
    """File contents that are no public Ed25519 key, and what the error says of them."""
    good = public_pem(alice.key)
    expected = "expected a public Ed25519 key, one block of PEM in at most 512 bytes, got "
    yield b"", f"{expected}0"
    yield good + good, f"{expected}2"
    yield good + b"\n" * 512, f"{expected}1 in the first 513 bytes"
    yield alice.key.public_key().public_bytes_raw(), expected
    yield private_pem(alice.key), "expected a public Ed25519 key in PEM, got none"
    yield good[:60], "expected a public Ed25519 key in PEM, got none"
    yield public_pem(ec.generate_private_key(ec.SECP256R1())), "expected a public Ed25519 key in PEM, got EC"


@pytest.mark.parametrize("index", range(7))
@pytest.mark.parametrize("policy", ["warn", "require"])
def test_a_key_file_holds_one_public_key(pack, alice, bob, tmp_path, policy, index):
    """A good key beside it does not excuse a bad one, nor does `warn`."""
    content, text = list(bad_keys(bob))[index]
    (tmp_path / "bad.pem").write_bytes(content)
    signing.sign(pack, alice.private)
    with pytest.raises(loader.KeyFileError, match=re.escape(text)) as caught:
        loader.kernels(trust=loader.Trust(policy, [alice.public, tmp_path / "bad.pem"]))
    assert caught.value.file == str(tmp_path / "bad.pem")


def test_a_missing_key_file_is_named(pack, tmp_path):
    """With what the system says."""
    with pytest.raises(loader.KeyFileError, match="none.pem cannot be read: No such file or directory"):
        loader.kernels(trust=loader.Trust("warn", tmp_path / "none.pem"))


def test_without_cryptography(cuda, pack, alice, monkeypatch):
    """Where a signature is to be checked or made, the error names the extra; elsewhere nothing is missing."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    CALLS["launch"]()
    for policy in ("warn", "require"):
        with pytest.raises(loader.MissingPackageError, match=r"pip install 'block-scaled\[signing\]'"):
            CALLS["launch"](trust=loader.Trust(policy, alice.public))
    with pytest.raises(loader.MissingPackageError, match="the package cryptography, which cannot be imported"):
        signing.sign(pack, alice.private)
    assert len(cuda.launches) == 1 and not signature_file(pack).exists()


def test_cryptography_is_imported_for_signatures_alone(pack, alice):
    """Not by a process that asks for none, not even where keys are named."""
    code = ("import sys, loader, loader.signing; loader.verify(); print('cryptography' in sys.modules); "
            f"loader.verify(trust=loader.Trust('require', {alice.public!r})); print('cryptography' in sys.modules)")
    signing.sign(pack, alice.private)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), trust.KEYS_VARIABLE: alice.public}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True,
                          timeout=60)
    assert done.stdout.split() == ["False", "True"]


# Signing


def test_signatures_of_several_keys(pack, alice, bob):
    """A key adds its own and replaces what it signed before; those of others stay, and every one counts."""
    first = signing.sign(pack, alice.private)
    before = signature_file(pack).read_bytes()
    second = signing.sign(pack, bob.private)
    both = signature_file(pack).read_bytes()
    assert before in both and both.count(b"\n") == 2
    assert signing.sign(pack, alice.private) == first and signature_file(pack).read_bytes() == both
    for keys, signers in (([alice.public], {first}), ([bob.public], {second}), ([alice.public, bob.public],
                                                                                 {first, second})):
        found, = registry.registry(pack, loader.Trust("require", keys)).packs
        assert set(found.signers) == signers


def test_a_pack_that_is_not_whole_is_not_signed(pack, alice):
    """A damaged file, or a manifest that no loader reads."""
    name = MANIFEST["artifacts"][0]["file"]
    (Path(pack) / name).write_bytes(b"damaged")
    with pytest.raises(loader.IntegrityError, match=re.escape(name)):
        signing.sign(pack, alice.private)
    (Path(pack) / "manifest.json").write_bytes(b"{}")
    with pytest.raises(loader.ManifestError):
        signing.sign(pack, alice.private)
    assert not signature_file(pack).exists()


def test_a_file_that_holds_no_signatures_is_not_overwritten(pack, alice):
    """Whoever made it says what it is."""
    signature_file(pack).write_text("notes\n")
    with pytest.raises(loader.SignatureSyntaxError, match="line 1: expected 'ed25519 <64 hex digits> "):
        signing.sign(pack, alice.private)
    assert signature_file(pack).read_text() == "notes\n"


def test_a_signature_too_many_is_not_written(pack, alice, rng):
    """What is written can be read."""
    full = trust.to_text({rng.bytes(32).hex(): rng.bytes(64) for _ in range(trust.MAX_SIGNERS)})
    signature_file(pack).write_bytes(full)
    with pytest.raises(loader.SignatureSyntaxError, match="64 signatures"):
        signing.sign(pack, alice.private)
    assert signature_file(pack).read_bytes() == full


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_signing_that_fails_leaves_the_old_signatures(pack, alice, bob, monkeypatch, function):
    """And nothing beside them: the file is replaced in one step, after its bytes are on disk."""
    signing.sign(pack, alice.private)
    before = signature_file(pack).read_bytes()

    def full(*_):
        assert signature_file(pack).read_bytes() == before
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, full)
    files = sorted(os.listdir(pack))
    with pytest.raises(loader.PackError, match="manifest.json.sig in pack .* cannot be written: No space"):
        signing.sign(pack, bob.private)
    assert signature_file(pack).read_bytes() == before and sorted(os.listdir(pack)) == files


@pytest.mark.parametrize("content,text", [
    (private_pem(ed25519.Ed25519PrivateKey.generate(), b"secret"), "expected a private Ed25519 key without a password"),
    (private_pem(ec.generate_private_key(ec.SECP256R1())), "expected a private Ed25519 key without a password in PEM"),
    (PUBLIC, "expected a private Ed25519 key without a password in PEM, got none"),
    (b"", "one block of PEM in at most 512 bytes")])  # fmt: skip
def test_only_a_private_key_signs(pack, tmp_path, content, text):
    """One that needs no password."""
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(loader.KeyFileError, match=text):
        signing.sign(pack, str(tmp_path / "key.pem"))
    assert not signature_file(pack).exists()


# The command line


def test_command_line_signs_and_verifies(pack, alice, bob, capsys):
    """`sign` and `verify --key` name the key; another key is an error, and without keys the output is what it was."""
    plain = "8 of 8 files verified, "
    assert main(["verify", "--key", alice.public]) == 2
    assert capsys.readouterr().err.startswith(f"UnsignedError: pack {pack} is not signed")
    assert main(["sign", pack, "--key", alice.private]) == 0
    signer = trust.key_id(alice.key.public_key())
    assert capsys.readouterr().out == f"{pack} is signed by {signer}\n"
    assert main(["verify"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(plain) and out.count("\n") == 1
    assert main(["verify", "--key", bob.public, "--key", alice.public]) == 0
    assert capsys.readouterr().out == out + f"{pack} is signed by {signer}\n"
    assert main(["verify", "--key", bob.public]) == 2
    assert capsys.readouterr().err.startswith("UntrustedSignerError: manifest.json.sig in pack ")


def test_command_line_follows_the_environment(pack, alice, monkeypatch, capsys):
    """Every command refuses what a launch would."""
    monkeypatch.setenv(trust.POLICY_VARIABLE, "require")
    assert main(["list"]) == 2 and capsys.readouterr().err.startswith("TrustError: LOADER_SIGNATURES requires")
    monkeypatch.setenv(trust.KEYS_VARIABLE, alice.public)
    for command in (["list"], ["inspect", "scale_rows"], ["verify"], ["explain", "scale_rows", "M=1"],
                    ["diff", pack, pack]):
        assert main(command) == 2 and capsys.readouterr().err.startswith("UnsignedError: ")
    assert main(["sign", pack, "--key", alice.private]) == 0
    assert main(["list"]) == 0


def test_command_line_signs_one_pack(pack, alice, tmp_path, capsys):
    """The one that the command names: no other directory, and none by an option that means another thing."""
    assert main(["sign", str(tmp_path), "--key", alice.private]) == 2
    assert capsys.readouterr().err.startswith("MissingFileError: manifest.json is missing in pack ")
    assert main(["sign", pack, "--key", alice.public]) == 2
    assert capsys.readouterr().err.startswith("KeyFileError: ")
    with pytest.raises(SystemExit, match="sign: expected the pack behind the command, got --packs"):
        main(["--packs", pack, "sign", pack, "--key", alice.private])
    assert not signature_file(pack).exists()
