"""What generated pages of the site say of a record, and where links of documents lead."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from site_pages import examples, outputs, results, tree  # noqa: E402

MEASURED = {"cpu": "a processor", "date": "2026-01-01 00:00 UTC", "device": "a card", "driver": "1"}


def record(folder: Path, rows: list[dict], **environment: str) -> results.Record:
    path = folder / "beside_deep_gemm-card.json"
    found = {"benchmark": "beside_deep_gemm", "environment": {**MEASURED, **environment}, "rows": rows}
    path.write_text(json.dumps(found))
    return results.Record(path)


def row(cell: str, ours: float, peer: float) -> dict:
    return {"part": "FP8 dense", "cell": cell, "microseconds": ours, "deep_gemm": peer, "floor": 1.0, "difference": 0.0}


def test_rows_that_lose_are_counted_and_first(tmp_path):
    """Whatever their order in the file; equal is not behind."""
    text = record(tmp_path, [row("fast", 1.0, 2.0), row("equal", 2.0, 2.0), row("slow", 3.0, 2.0)]).page(
        ROOT / "benchmarks", {"gemm_fp8"})
    assert "## Behind in 1 of 3 rows" in text
    places = [text.index(f"| {cell} |") for cell in ("slow", "equal", "fast")]
    assert places == sorted(places) and text.count(" behind**") == 1 and "**1.500 behind**" in text
    assert "](../families/gemm_fp8.md)" in text


def test_what_a_record_does_not_name_is_said(tmp_path):
    """And no longer where it does."""
    rows = [row("one", 1.0, 2.0)]
    missing = "The record does not name clocks, the sources, the digest of the pack, the spread of the times."
    assert missing in record(tmp_path, rows).page(ROOT / "benchmarks", set())
    named = record(tmp_path, rows, clocks="1980 MHz", sources="commit abc", pack_digest="def", spread="1 %")
    assert "does not name" not in named.page(ROOT / "benchmarks", set())


def test_how_times_were_taken_is_what_the_record_says(tmp_path):
    """Where it does; else what the program does now."""
    rows = [row("one", 1.0, 2.0)]
    assert "So says [timing.py]" in record(tmp_path, rows).page(ROOT / "benchmarks", set())
    found = record(tmp_path, rows)
    timing = {"cold L2": "1 MiB written before each replay", "captures": 5, "replays": "10, 35", "worst spread": 0.125}
    (tmp_path / "beside_deep_gemm-card.json").write_text(json.dumps({**found.record, "timing": timing}))
    text = results.Record(tmp_path / "beside_deep_gemm-card.json").page(ROOT / "benchmarks", set())
    assert "For a cold L2: 1 MiB written before each replay of a CUDA graph." in text and "timing.py" not in text
    assert "so many replays: 10, 35, of 5 captures" in text and "| worst spread | 0.125 |" in text


def test_an_unknown_benchmark_is_an_error(tmp_path):
    """It names the file and the place where a line is missing."""
    path = tmp_path / "new.json"
    path.write_text(json.dumps({"benchmark": "new", "environment": MEASURED, "rows": []}))
    with pytest.raises(KeyError, match=r"new\.json: benchmark 'new' has no line in KINDS of .*results\.py"):
        results.Record(path)


@pytest.mark.parametrize("text, relinked", [
    ("[a](../README.md#there)", "[a](generated/readme.md#there)"),
    ("[a](../benchmarks/results/tune-h100.json)", "[a](generated/benchmarks/tune-h100.md)"),
    ("[a](../examples/nvfp4.py)", "[a](generated/examples.md)"),
    ("[a](../kernels.yaml)", "[a](../kernels.yaml)"),
    ("[a](../loader)", "a"),
    ("[a](loader.md) [b](#c) [d](https://e/f)", "[a](loader.md) [b](#c) [d](https://e/f)"),
])
def test_links_lead_to_pages(text, relinked):
    """To those of a file, where it has one; a folder without one is no link."""
    docs = ROOT / "docs"
    assert tree.relink(ROOT, text, docs, docs) == relinked


def test_examples_say_how_they_run():
    """Each program that does something when it is run has its command."""
    programs = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"model_layer", "nvfp4", "options", "ranks"}
    assert programs == {*examples.WITHOUT_GPU, *examples.WITH_PACKAGES, *examples.WITH_GPU}
    others = {path.name for path in (ROOT / "examples").glob("*.*") if path.suffix != ".py"}
    assert others == set(examples.OTHER_LANGUAGES)


def test_what_a_program_printed_is_kept_until_it_changes(tmp_path):
    """Until its sources, the pack or its command do; what failed is neither kept nor hidden."""
    for path, text in {"examples/a.py": "import uuid; print(uuid.uuid4())", "artifacts/manifest.json": "1",
                       "examples/b.py": "raise ValueError(f'no {__file__}')"}.items():  # fmt: skip
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    commands = {"a": "python examples/a.py", "b": "python examples/b.py"}

    def printed() -> str:
        found = outputs.outputs(tmp_path, tmp_path / "cache", commands)
        assert found["b"] == ("ValueError: no examples/b.py", True) and not found["a"].failed
        assert [path.read_text() for path in (tmp_path / "cache").iterdir()] == [found["a"].text]
        return found["a"].text

    seen = [printed()]
    assert printed() == seen[0]
    (tmp_path / "artifacts/manifest.json").write_text("2")
    seen.append(printed())
    (tmp_path / "examples/a.py").write_text("import uuid; print(uuid.uuid4(), 2)")
    seen.append(printed())
    commands["a"] += " --word"
    seen.append(printed())
    assert len(set(seen)) == 4 and printed() == seen[-1]


def test_the_gallery_shows_what_came_out():
    """Of programs that were run; a page of none says so."""
    target = ROOT / "docs" / "generated"
    found = {"numpy_example": outputs.Output("error 1e-7", False), "moe_layer": outputs.Output("ValueError: x", True)}
    (_, text), = examples.pages(ROOT, target, found)
    assert text.count("~~~~text") == 2 and "without a pack" not in text
    assert "It printed:\n\n~~~~text\nerror 1e-7\n~~~~" in text
    assert "It failed where this site was built, and said:\n\n~~~~text\nValueError: x\n~~~~" in text
    (_, text), = examples.pages(ROOT, target, {})
    assert "~~~~text" not in text and "built without a pack of the same sources" in text
