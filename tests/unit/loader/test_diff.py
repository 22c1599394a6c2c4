"""``python -m loader diff``: what it shows of two packs."""

import lzma

import pytest
import sample_pack

import loader
from loader import changes, registry
from loader.__main__ import main

ROW = {"arch": "90a", "device": "NVIDIA H100", "features": {"M": 32}}


def packs(tmp_path, edit=lambda manifest, files: None):
    """A pack and one that ``edit`` has changed."""
    for name in ("before", "after"):
        manifest, files = sample_pack.build(["90a"])
        manifest["families"]["scale_rows"]["select"]["measured"] = [ROW | {"microseconds": {"m16": 8.0, "m64": 4.0}}]
        if name == "after":
            edit(manifest, files)
        sample_pack.write(tmp_path / name, manifest, files)
    return [str(tmp_path / "before"), str(tmp_path / "after")]


def test_same_packs(tmp_path, capsys):
    """Nothing is shown, and the exit status is 0."""
    assert main(["diff", *packs(tmp_path)]) == 0
    assert capsys.readouterr().out == "0 of 4 and 4 artifacts differ\n"


def test_each_kind_of_change(tmp_path, capsys):
    """Code, resources, instructions and times of a kernel, and what one pack has alone."""
    def edit(manifest, files):
        one, gone = manifest["artifacts"][0], manifest["artifacts"].pop(1)
        for data in (gone, gone["ptx"]):
            del files[data["file"]]
        files[one["file"]] += b"more"
        files[one["ptx"]["file"]] = lzma.compress(
            b".version 9.0\n{\n\t@%p1 bra L;\nL:\n\tadd.s32 %r1, %r2, 1;\n\tadd.s32 %r1, %r1, 1;\n\tret;\n}\n")
        one.update(sample_pack.stored(one["file"], files[one["file"]]), registers=one["registers"] + 8)
        one["ptx"] = sample_pack.stored(one["ptx"]["file"], files[one["ptx"]["file"]])
        manifest["families"]["scale_rows"]["select"]["measured"][0]["microseconds"]["m64"] = 3.0

    before, after = packs(tmp_path, edit)
    page = tmp_path / "page.html"
    assert main(["diff", before, after, "--html", str(page)]) == 1
    text = capsys.readouterr().out
    found = {change.variant: change for change in changes.changes(*map(registry.open_pack, (before, after)))}
    assert list(found) == ["m16_bf16", "m16_f32", "m64_bf16", "m64_f32"]
    code, gone, faster = found["m16_bf16"], found["m16_f32"], found["m64_f32"]
    assert code.registers[1] == code.registers[0] + 8 and code.bytes[1] == code.bytes[0] + 4
    assert code.instructions == {"add": 2, "bra": 1, "ret": 1} and (code.speed, code.rows) == (1, 1)
    assert gone.registers[1] is None and gone.bytes[1] is None
    assert faster.registers[0] == faster.registers[1] and (faster.speed, faster.rows) == (0.75, 1)
    assert f"{code.registers[0]} -> {code.registers[1]}" in text and "add +2, bra +1, ret +1" in text
    assert "-> none" in text and "0.750 of 1" in text and text.endswith("4 of 4 and 3 artifacts differ\n")
    assert "<td>add +2, bra +1, ret +1</td>" in page.read_text() and "-&gt; none" in page.read_text()


def test_damage_is_an_error(tmp_path, capsys):
    """A file that is not what its manifest says is not compared."""
    def edit(manifest, files):
        files[manifest["artifacts"][0]["file"]] += b"more"
        manifest["artifacts"][0].update(sample_pack.stored(*next(iter(files.items()))))

    before, after = packs(tmp_path, edit)
    with pytest.raises(loader.LoaderError):
        changes.changes(registry.open_pack(before), registry.open_pack(str(tmp_path / "absent")))
    (tmp_path / "after" / registry.open_pack(after).manifest.artifacts[0].ptx.file).write_bytes(b"x")
    assert main(["diff", before, after]) == 2
    assert "IntegrityError" in capsys.readouterr().err
