"""Wrong signatures: each raises its own error, nothing of the manifest is parsed, and the driver is not even opened."""

import hashlib
import os

import pytest
import sample_pack
from key_files import Owner
from sample_call import arguments

import loader
from loader import registry, signing, trust

MANIFEST, FILES = sample_pack.build(archs=("120a",))
ORDER = 2**252 + 27742317777372353535851937790883648493  # of the group of Ed25519


class Signed:
    """A pack that Alice has signed, as a test changes it: its manifest and its signature file."""

    def __init__(self, folder):
        self.folder, self.pack = folder, folder / "pack"
        self.alice, self.mallory = Owner(folder, "alice"), Owner(folder, "mallory")
        sample_pack.write(self.pack, MANIFEST, FILES)
        self.id = signing.sign(str(self.pack), self.alice.private)
        self.manifest, self.text = self.paths[0].read_bytes(), self.paths[1].read_bytes()
        self.signature = trust.from_text(self.text, "pack")[self.id]

    @property
    def paths(self):
        return self.pack / "manifest.json", self.pack / trust.SIGNATURE_NAME

    def sign_as(self, signature, signer=None):
        self.text = trust.to_text({signer or self.id: signature})

    def write(self):
        for path, data in zip(self.paths, (self.manifest, self.text), strict=True):
            path.write_bytes(data)


@pytest.fixture
def signed(tmp_path):
    return Signed(tmp_path)


def flipped(data, rng):
    """``data`` with one bit that is another."""
    position = int(rng.integers(8 * len(data)))
    changed = bytearray(data)
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)


def other_pack(signed):
    """The signature that Alice made of another pack."""
    manifest, files = sample_pack.build(archs=("90a",))
    sample_pack.write(signed.folder / "other", manifest, files)
    signing.sign(str(signed.folder / "other"), signed.alice.private)
    signed.text = (signed.folder / "other" / trust.SIGNATURE_NAME).read_bytes()


def raised_by_the_order(signed):
    """The second number of a signature plus the group's order: the same equation, another text."""
    number = int.from_bytes(signed.signature[32:], "little") + ORDER
    signed.sign_as(signed.signature[:32] + number.to_bytes(32, "little"))


def line(pattern):
    """A change of the file's one line: ``id`` and ``hex`` are those of Alice's signature."""
    def change(signed, rng):
        signed.text = pattern.format(id=signed.id, hex=signed.signature.hex()).encode("latin-1")
    return change


def set_text(make):
    def change(signed, rng):
        signed.text = make(signed.text, rng)
    return change


def foreign_byte(text, rng):
    """One byte replaced by one that stands nowhere in the format."""
    position = int(rng.integers(len(text)))
    return text[:position] + bytes([rng.choice([*range(10), *range(11, 32), *range(103, 256)])]) + text[position + 1:]


def manifest(make):
    def change(signed, rng):
        signed.manifest = make(signed.manifest, rng)
    return change


def signature(make):
    def change(signed, rng):
        signed.sign_as(make(signed.signature, rng))
    return change


GOOD = "ed25519 {id} {hex}\n"
# What is wrong -> how often, with other random numbers each time, and the change.
WRONG = {
    "a bit of the signature": (20, signature(flipped)),
    "a bit of the manifest": (20, manifest(flipped)),
    "a manifest cut off": (4, manifest(lambda data, rng: data[:rng.integers(len(data))])),
    "a manifest with a space behind it": (1, manifest(lambda data, rng: data + b" ")),
    "a manifest of other line ends": (1, manifest(lambda data, rng: data + b"\r\n")),
    "an empty manifest": (1, manifest(lambda data, rng: b"")),
    "a manifest over the limit": (1, manifest(lambda data, rng: b" " * (registry.MAX_MANIFEST_BYTES + 9))),
    "random bytes": (4, signature(lambda data, rng: rng.bytes(64))),
    "zeros": (1, signature(lambda data, rng: bytes(64))),
    "ones": (1, signature(lambda data, rng: b"\xff" * 64)),
    "halves exchanged": (1, signature(lambda data, rng: data[32:] + data[:32])),
    "the other representative": (1, lambda signed, rng: raised_by_the_order(signed)),
    "another pack's": (1, lambda signed, rng: other_pack(signed)),
    "of another key under Alice's id": (1, lambda signed, rng: signed.sign_as(
        signed.mallory.key.sign(signed.manifest))),
    "of the digest": (1, lambda signed, rng: signed.sign_as(signed.alice.key.sign(hashlib.sha256(
        signed.manifest).digest()))),
}
UNTRUSTED = {
    "a bit of the key's id": (10, lambda signed, rng: signed.sign_as(signed.signature, flipped(
        bytes.fromhex(signed.id), rng).hex())),
    "a valid one of another key": (1, lambda signed, rng: signed.sign_as(
        signed.mallory.key.sign(signed.manifest), trust.key_id(signed.mallory.key.public_key()))),
}
SYNTAX = {
    "a foreign byte": (20, set_text(foreign_byte)),
    "cut off": (10, set_text(lambda text, rng: text[:rng.integers(1, len(text))])),
    "empty": (1, set_text(lambda text, rng: b"")),
    "a line end": (1, set_text(lambda text, rng: b"\n")),
    "the line twice": (1, set_text(lambda text, rng: 2 * text)),
    "a wrong one before it": (1, set_text(lambda text, rng: text[:-129] + rng.bytes(64).hex().encode() + b"\n" + text)),
    "an empty line behind it": (1, set_text(lambda text, rng: text + b"\n")),
    "other text behind it": (1, set_text(lambda text, rng: text + b"signed by Alice\n")),
    "a zero byte behind it": (1, set_text(lambda text, rng: text + b"\0")),
    "not UTF-8": (1, set_text(lambda text, rng: b"\xff\xfe" + text)),
    "a byte order mark": (1, set_text(lambda text, rng: b"\xef\xbb\xbf" + text)),
    "UTF-16": (1, set_text(lambda text, rng: text.decode().encode("utf-16"))),
    "over the limit": (1, set_text(lambda text, rng: text + b"\n" * (1 << 22))),
    "a signer too many": (1, set_text(lambda text, rng: text + b"".join(trust.to_text({
        rng.bytes(32).hex(): rng.bytes(64)}) for _ in range(trust.MAX_SIGNERS)))),
    "no line end": (1, line("ed25519 {id} {hex}")),
    "a line end of Windows": (1, line("ed25519 {id} {hex}\r\n")),
    "upper case": (1, set_text(lambda text, rng: text.upper())),
    "two spaces": (1, line("ed25519  {id} {hex}\n")),
    "a space behind it": (1, line("ed25519 {id} {hex} \n")),
    "another algorithm": (1, line("rsa {id} {hex}\n")),
    "no algorithm": (1, line("{id} {hex}\n")),
    "no id": (1, line("ed25519 {hex}\n")),
    "a short id": (1, line("ed25519 {id:.62} {hex}\n")),
    "a long id": (1, line("ed25519 {id}00 {hex}\n")),
    "a short signature": (1, line("ed25519 {id} {hex:.126}\n")),
    "a long signature": (1, line("ed25519 {id} {hex}00\n")),
    "half a byte": (1, line("ed25519 {id} {hex:.127}\n")),
    "bytes and no digits": (1, set_text(lambda text, rng: bytes.fromhex(text[-129:-1].decode()))),
    "JSON": (1, line('{{"{id}": "{hex}"}}\n')),
}
CASES = [pytest.param(error, text, change, id=f"{kind}-{i}")
         for error, text, kinds in (
             (loader.WrongSignatureError, "the signature of key {id} is not one of this manifest", WRONG),
             (loader.UntrustedSignerError, "no pinned key has signed; signed by ", UNTRUSTED),
             (loader.SignatureSyntaxError, f"{trust.SIGNATURE_NAME} in pack {{pack}}", SYNTAX))
         for kind, (count, change) in kinds.items() for i in range(count)]


def required(owner):
    return loader.Trust("require", owner.public)


def launch(signed):
    loader.launch("scale_rows", packs=str(signed.pack), trust=required(signed.alice), **arguments())


def refuse(cuda, monkeypatch, signed, error, text):
    """A launch raises exactly this error; nothing was parsed, and no function of the driver called."""
    parsed = []
    monkeypatch.setattr(registry, "parse", parsed.append)
    with pytest.raises(loader.LoaderError) as caught:
        launch(signed)
    assert type(caught.value) is error, repr(caught.value)
    assert text.format(id=signed.id, pack=signed.pack) in str(caught.value)
    assert (caught.value.pack, caught.value.file) == (str(signed.pack), trust.SIGNATURE_NAME)
    assert not parsed and not cuda.calls


def test_the_right_signature_launches(cuda, signed):
    """What is made wrong below works before."""
    launch(signed)
    assert len(cuda.launches) == 1


def test_there_are_a_hundred():
    """Of wrong signatures below."""
    assert len(CASES) >= 100


@pytest.mark.parametrize("error,text,change", CASES)
def test_a_wrong_signature_is_refused(cuda, monkeypatch, signed, rng, error, text, change):
    """With the error of what is wrong with it, before the manifest is parsed."""
    change(signed, rng)
    signed.write()
    refuse(cuda, monkeypatch, signed, error, text)


def test_no_signature_is_refused(cuda, monkeypatch, signed):
    """Also where there is a link to none."""
    signed.paths[1].unlink()
    refuse(cuda, monkeypatch, signed, loader.UnsignedError, "pack {pack} is not signed: manifest.json.sig is missing")
    signed.paths[1].symlink_to(signed.pack / "nothing")
    refuse(cuda, monkeypatch, signed, loader.UnsignedError, "is not signed")


def test_what_is_no_file_of_the_pack_is_refused(cuda, monkeypatch, signed):
    """A link out of it, a directory, a pipe that nobody writes to."""
    path = signed.paths[1]
    path.rename(signed.folder / "elsewhere")
    path.symlink_to(signed.folder / "elsewhere")
    refuse(cuda, monkeypatch, signed, loader.PackPathError, "manifest.json.sig leads out of pack {pack}")
    for make in (os.mkdir, os.mkfifo):
        path.unlink() if path.is_symlink() else path.rmdir()
        make(path)
        refuse(cuda, monkeypatch, signed, loader.PackPathError, "manifest.json.sig in pack {pack} is no regular file")


def test_every_signature_of_a_pinned_key_must_hold(cuda, signed):
    """One that holds beside it does not excuse a wrong one; one of a key that is not pinned counts for nothing."""
    wrong = {trust.key_id(signed.mallory.key.public_key()): bytes(64)}
    signed.text = trust.to_text({signed.id: signed.signature, **wrong})
    signed.write()
    launch(signed)
    both = loader.Trust("require", [signed.alice.public, signed.mallory.public])
    with pytest.raises(loader.WrongSignatureError):
        loader.launch("scale_rows", packs=str(signed.pack), trust=both, **arguments())
    assert len(cuda.launches) == 1


def test_what_was_checked_is_what_is_parsed(cuda, monkeypatch, signed):
    """The manifest is read once: what lies there a moment later is neither trusted nor used."""
    read = registry.read_file
    names = []

    def replace_after_reading(directory, file, limit):
        names.append(file)
        data = read(directory, file, limit)
        if file == "manifest.json":
            signed.paths[0].write_bytes(b"{}")
        return data

    monkeypatch.setattr(registry, "read_file", replace_after_reading)
    launch(signed)
    assert len(cuda.launches) == 1 and names[:2] == ["manifest.json", trust.SIGNATURE_NAME]
    assert names.count("manifest.json") == 1
