"""PTX as packs store it."""

import gzip
import lzma
import sys

import pytest
import sample_pack

from loader import errors, listing, registry

TEXT = "of this text, \u00e4 too"


def candidate(directory, suffix, content):
    """An artifact whose PTX is ``content`` in a file of that suffix."""
    manifest, files = sample_pack.build(archs=("120a",))
    entry = manifest["artifacts"][0]
    del files[entry["ptx"]["file"]]
    name = f"scale_rows/sm_120a/listing.ptx.{suffix}"
    files[name], entry["ptx"] = content, sample_pack.stored(name, content)
    sample_pack.write(directory, manifest, files)
    opened = registry.open_pack(str(directory))
    return registry.Candidate(opened, next(a for a in opened.manifest.artifacts if a.ptx.file == name))


@pytest.mark.parametrize(("suffix", "pack"), [("xz", lzma.compress), ("gz", gzip.compress)])
def test_a_listing_is_what_was_packed(tmp_path, suffix, pack):
    """In xz, and in gzip, which packs of an earlier schema have."""
    assert listing.ptx_text(candidate(tmp_path, suffix, pack(TEXT.encode()))) == TEXT


@pytest.mark.parametrize(("suffix", "pack"), [("gz", lzma.compress), ("xz", gzip.compress)])
def test_a_name_says_how_it_is_packed(tmp_path, suffix, pack):
    """One in the name of the other is refused."""
    packed = pack(TEXT.encode())
    with pytest.raises(errors.IntegrityError, match=f"is no {'gzip' if suffix == 'gz' else 'xz'} of PTX"):
        listing.ptx_text(candidate(tmp_path, suffix, packed))


@pytest.mark.parametrize("damaged", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data * 2])
def test_gzip_that_is_damaged(tmp_path, damaged):
    """What does not end is refused, and what goes on; of xz the hostile packs show it."""
    with pytest.raises(errors.IntegrityError, match="cut off, too long, or something follows"):
        listing.ptx_text(candidate(tmp_path, "gz", damaged(gzip.compress(TEXT.encode()))))


def test_a_python_without_lzma(tmp_path, monkeypatch):
    """Reads all but PTX in xz, and says what is missing."""
    packed = lzma.compress(b"text")
    monkeypatch.setitem(sys.modules, "lzma", None)
    assert listing.ptx_text(candidate(tmp_path / "gz", "gz", gzip.compress(b"text"))) == "text"
    with pytest.raises(errors.MissingPackageError, match="needs the module lzma"):
        listing.ptx_text(candidate(tmp_path / "xz", "xz", packed))
