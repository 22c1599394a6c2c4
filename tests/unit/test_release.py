"""The recipe of a release, without running it."""

import os
import subprocess
from pathlib import Path

import loader

ROOT = Path(__file__).resolve().parents[2]
VERSION = loader.__version__


def release(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run([ROOT / ".ci" / "release", *arguments], capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"], **variables})  # fmt: skip


def test_the_recipe_says_what_it_would_run():
    """Tests, then a wheel twice, compared, checked and attested; signed where there is a key."""
    done = release(f"v{VERSION}", "--dry-run")
    wheel = f"block_scaled-{VERSION}-py3-none-any.whl"
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.splitlines() == [
        "+ .ci/run",
        "+ .venv/bin/pip install --quiet pypi-attestations twine",
        "+ .venv/bin/python build.py --wheel dist --locked",
        "+ .venv/bin/python build.py --wheel dist/again --locked --out dist/again/pack",
        f"+ cmp dist/{wheel} dist/again/{wheel}",
        f"+ .venv/bin/twine check --strict dist/{wheel}",
        f"+ .venv/bin/python -m pypi_attestations sign dist/{wheel}",
    ]
    assert release(f"v{VERSION}", "--dry-run", LOADER_SIGNING_KEY="key.pem").stdout.count(" --sign key.pem\n") == 2


def test_another_tag_is_refused():
    """The version stands once, and a tag is of that version."""
    for tag in ("v9.9", VERSION):
        done = release(tag, "--dry-run")
        assert done.returncode == 1 and not done.stdout
        assert done.stderr == f"release: expected the tag v{VERSION}, the version in loader/__init__.py, got {tag}\n"
    assert release(f"v{VERSION}", "--dry").returncode == 1
