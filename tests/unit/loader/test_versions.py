"""Two versions of the loader and one pack: ranges of schemas and rules that overlap, and those that do not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sample_pack

import loader
from loader import reader

ROOT = Path(loader.__file__).parents[1]

# Both in one process: the other version is asked first and last, ours in between.
PROGRAM = """
import sys
import loader
from block_scaled import loader as other
assert other.__version__ == "9.0.0" != loader.__version__
def ask(one):
    try:
        return " ".join(one.kernels(packs=sys.argv[1])["scale_rows"].archs)
    except one.LoaderError as error:
        return f"{type(error).__name__}: {error}"
print(ask(other), ask(loader), ask(other), sep="\\n")
"""


@pytest.mark.parametrize(("schemas", "abis", "answer"), [
    ((1, reader.SCHEMAS[1] + 3), (1, 2), "90a 120a"),
    ((1, 1), (1, 1), "90a 120a"),
    ((2, 9), (1, 2), "SchemaError: pack {}: manifest.json: schema 1, this loader reads 2 to 9"),
    ((1, 9), (2, 3), "SchemaError: pack {}: manifest.json: abi 1, this loader reads 2 to 3"),
], ids=["later", "earlier", "no schema in common", "no rules in common"])  # fmt: skip
def test_two_versions_and_one_pack(tmp_path, schemas, abis, answer):
    """Each reads what it knows, or says what it does not; neither disturbs the other."""
    manifest, files = sample_pack.build(["90a", "120a"])
    assert (manifest["schema"], manifest["abi"]) == (1, 1)
    sample_pack.write(tmp_path / "pack", manifest, files)
    other = tmp_path / "site" / "block_scaled"
    shutil.copytree(ROOT / "loader", other / "loader", ignore=shutil.ignore_patterns("__pycache__"))
    (other / "__init__.py").touch()
    for name, old, new in (("reader.py", f"SCHEMAS = {reader.SCHEMAS}", f"SCHEMAS = {schemas}"),
                           ("reader.py", f"ABIS = {reader.ABIS}", f"ABIS = {abis}"),
                           ("__init__.py", f'"{loader.__version__}"', '"9.0.0"')):  # fmt: skip
        text = (other / "loader" / name).read_text()
        assert text.count(old) == 1
        (other / "loader" / name).write_text(text.replace(old, new))
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "pack")], capture_output=True, text=True,
                          env={"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}, cwd=tmp_path, check=False)  # fmt: skip
    expected = answer.format(tmp_path / "pack")
    assert done.stdout.splitlines() == [expected, "90a 120a", expected], done.stderr
