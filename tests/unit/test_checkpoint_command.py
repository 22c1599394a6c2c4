"""``python -m integrations.checkpoint convert``: what is written where, what is left out, what is refused before."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch

from integrations import checkpoint
from integrations.safetensors_file import SafetensorsFile

H, I = 32, 64  # noqa: E741


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """The command's tables fit on a line."""
    monkeypatch.setenv("COLUMNS", "200")


def experts(rng, prefix):
    """A layer of one expert, in ModelOpt's names."""
    tensors = {}
    for projection, (n, k) in (("gate_proj", (I, H)), ("up_proj", (I, H)), ("down_proj", (H, I))):
        stem = f"{prefix}.0.{projection}"
        tensors[f"{stem}.weight"] = torch.from_numpy(rng.integers(0, 256, (n, k // 2), dtype=np.uint8))
        scale = torch.from_numpy(rng.integers(0, 0x7F, (n, k // 16), dtype=np.uint8))
        tensors[f"{stem}.weight_scale"] = scale.view(torch.float8_e4m3fn)
        tensors[f"{stem}.weight_scale_2"] = torch.tensor(0.5)
        tensors[f"{stem}.input_scale"] = torch.tensor(0.25)
    return tensors


def unquantised(prefix):
    stems = [f"{prefix}.0.{projection}" for projection in ("gate_proj", "up_proj", "down_proj")]
    return {f"{stem}.weight": torch.zeros((I, H), dtype=torch.bfloat16) for stem in stems}


def save(folder, tensors, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(tensors, folder / name)


def run(*arguments) -> int:
    return checkpoint.main(["convert", *map(str, arguments)])


def everything_below(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("stem", ["../escaped", "{root}/escaped", "a/b", "a\\b", "c:a", "a\n", "\x1b[31m", "long" * 70])
def test_a_name_that_is_no_file_of_the_folder_is_refused(tmp_path, rng, stem, capsys):
    """A tensor's name becomes a file's; where it leads elsewhere nothing is written, not even the layers before."""
    prefix = f"{stem.format(root=tmp_path)}.experts"
    save(tmp_path / "in", experts(rng, "model.layers.0.experts") | experts(rng, prefix))
    before = everything_below(tmp_path)
    assert run(tmp_path / "in", tmp_path / "out") == 1
    assert capsys.readouterr().err == (
        f"CheckpointError: {prefix!r} cannot be the name of a file in {tmp_path / 'out'}\n"
    )
    assert everything_below(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["experts.{number}.gate_proj.weight", "layers.{number}.experts.0.gate_proj.weight"])
def test_a_number_of_any_length_is_no_raw_error(tmp_path, rng, name, capsys):
    """Numbers that are no layer's or expert's are words."""
    name = "model." + name.format(number="9" * 5000)
    save(tmp_path / "in", experts(rng, "model.experts") | {name: torch.zeros(1)})
    status = run(tmp_path / "in", tmp_path / "out", "--prefix", "model.experts")
    assert (status, "have no place" in capsys.readouterr().err) == ((1, True) if "layers" not in name else (0, False))
    assert run(tmp_path / "in", tmp_path / "out", "--layers", "1") == 1
    assert "nothing to convert" in capsys.readouterr().err


def test_a_name_is_not_markup(tmp_path, rng, capsys):
    """What rich would take for a tag is printed and written as it is."""
    save(tmp_path / "in", experts(rng, "[bold]a.experts") | unquantised("[/red]b.experts"))
    assert run(tmp_path / "in", tmp_path / "out") == 0
    written, _, skipped = capsys.readouterr().out.partition("skipped")
    assert written.count(" [bold]a.experts ") == 1
    assert skipped.count(" [/red]b.experts ") == 1
    assert os.listdir(tmp_path / "out") == ["[bold]a.experts.safetensors"]


def link(how, source, target):
    {"symlink": target.symlink_to, "hardlink": target.hardlink_to}[how](source)


@pytest.mark.parametrize("how", ["itself", "symlink", "hardlink"])
@pytest.mark.parametrize("given", ["file", "folder"])
def test_the_input_is_not_replaced(tmp_path, rng, how, given, capsys):
    """A file to be written is none of those that are read, by whatever name."""
    prefix = "model.layers.0.experts"
    name = f"{prefix}.safetensors"
    folder, out = tmp_path / "in", tmp_path / "out"
    save(out if how == "itself" else folder, experts(rng, prefix), name)
    if how == "itself":
        folder.symlink_to(out)
    else:
        out.mkdir()
        link(how, folder / name, out / name)
    before = everything_below(tmp_path)
    assert run(folder / name if given == "file" else folder, out) == 1
    error = capsys.readouterr().err
    if how == "itself" and given == "folder":
        assert error == f"CheckpointError: {out} is the folder of the checkpoint; files are written to another one\n"
    else:
        message = f"{out / name} is a file of the checkpoint; files are written to another folder"
        assert error == f"CheckpointError: {message}\n"
    assert everything_below(tmp_path) == before


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path, rng, capsys):
    """It is seen before the first file is written."""
    save(tmp_path / "in", experts(rng, "a.experts") | experts(rng, "b.experts"))
    (tmp_path / "out" / "b.experts.safetensors").mkdir(parents=True)
    assert run(tmp_path / "in", tmp_path / "out") == 1
    assert capsys.readouterr().err == f"CheckpointError: {tmp_path / 'out' / 'b.experts.safetensors'} is a folder\n"
    assert os.listdir(tmp_path / "out") == ["b.experts.safetensors"]


def model(rng):
    """Two layers of NVFP4 with one of BF16 between, and a layer that predicts further tokens."""
    return (
        experts(rng, "model.layers.1.mlp.experts")
        | unquantised("model.layers.2.mlp.experts")
        | experts(rng, "model.layers.10.mlp.experts")
        | experts(rng, "mtp.layers.1.mlp.experts")
    )


@pytest.mark.parametrize(("options", "written"), [
    ([], ["model.layers.1", "model.layers.10"]),
    (["--layers", "0-60"], ["model.layers.1", "model.layers.10"]),
    (["--layers", "1"], ["model.layers.1"]),
    (["--prefix", "mtp.*"], ["mtp.layers.1"]),
    (["--prefix", "*", "--layers", "1"], ["model.layers.1", "mtp.layers.1"]),
    (["--prefix", "*"], ["model.layers.1", "model.layers.10", "mtp.layers.1"]),
])  # fmt: skip
def test_prefixes_decide_and_what_is_skipped_is_listed(tmp_path, rng, options, written, capsys):
    """A layer in another format stops nothing; every layer is in one of the two tables."""
    save(tmp_path / "in", model(rng))
    assert run(tmp_path / "in", tmp_path / "out", *options) == 0
    assert sorted(os.listdir(tmp_path / "out")) == sorted(f"{stem}.mlp.experts.safetensors" for stem in written)
    skipped = capsys.readouterr().out.partition("skipped")[2]
    for stem in ("model.layers.1", "model.layers.2", "model.layers.10", "mtp.layers.1"):
        assert (f" {stem}.mlp.experts " in skipped) == (stem not in written)


def test_reasons_of_what_is_skipped(tmp_path, rng, capsys):
    """The summary says why."""
    save(tmp_path / "in", model(rng))
    assert run(tmp_path / "in", tmp_path / "out", "--layers", "1-3") == 0
    skipped = capsys.readouterr().out.partition("skipped")[2]
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in skipped.splitlines() if "│" in line]
    assert sorted(rows) == [
        ["model.layers.10.mlp.experts", "not among --layers"],
        ["model.layers.2.mlp.experts",
         "in no format that is read: 0.down_proj.weight is BF16"],
        ["mtp.layers.1.mlp.experts", "predicts further tokens; --prefix takes it"],
    ]  # fmt: skip


def test_nothing_to_convert_is_an_error(tmp_path, rng, capsys):
    """With the reasons, and without a folder."""
    save(tmp_path / "in", model(rng))
    assert run(tmp_path / "in", tmp_path / "out", "--layers", "2") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"CheckpointError: {tmp_path / 'in'}: nothing to convert\n")
    assert "model.layers.2.mlp.experts: in no format that is read" in error
    assert not (tmp_path / "out").exists()


def test_a_damaged_layer_stops_the_conversion_before_it_begins(tmp_path, rng, capsys):
    """NVFP4 that lacks a tensor is not skipped."""
    tensors = model(rng)
    del tensors["model.layers.10.mlp.experts.0.up_proj.weight_scale"]
    save(tmp_path / "in", tensors)
    assert run(tmp_path / "in", tmp_path / "out") == 1
    assert "no tensor model.layers.10.mlp.experts.0.up_proj.weight_scale" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ranks_have_files_of_their_own(tmp_path, rng, capsys):
    """The name says which rank of how many; so does the metadata."""
    save(tmp_path / "in", experts(rng, "a.experts"))
    for rank in range(2):
        assert run(tmp_path / "in", tmp_path / "out", "--tp", 2, "--rank", rank) == 0
        metadata = SafetensorsFile(tmp_path / "out" / f"a.experts.rank{rank}of2.safetensors").metadata
        assert [json.loads(metadata[name]) for name in ("tp", "rank", "hidden", "intermediate")] == [2, rank, H, I]
    for options in (["--tp", 2], ["--rank", 0], ["--tp", 2, "--rank", 2], ["--tp", 0, "--rank", 0]):
        with pytest.raises(SystemExit):
            run(tmp_path / "in", tmp_path / "out", *options)


def test_an_interrupted_conversion_leaves_nothing_half_written(tmp_path, rng, monkeypatch, capsys):
    """Files that are finished stay; one line instead of a traceback."""
    save(tmp_path / "in", experts(rng, "a.experts") | experts(rng, "b.experts"))
    right, calls = checkpoint.fill, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        right(*arguments)

    monkeypatch.setattr(checkpoint, "fill", interrupted)
    assert run(tmp_path / "in", tmp_path / "out") == 130
    assert capsys.readouterr().err == "interrupted; files that were begun are gone, finished ones stay\n"
    assert os.listdir(tmp_path / "out") == ["a.experts.safetensors"]
