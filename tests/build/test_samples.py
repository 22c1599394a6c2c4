"""The samples of the tutorial and of the worked example, as a reader types them."""

from __future__ import annotations

from pathlib import Path

import pytest
import samples

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("document", ["tutorial", "adding-a-kernel"])
def test_samples_run(document, tmp_path):
    """Files are written, commands succeed, and print what the page says."""
    done = samples.run(DOCS / f"{document}.md", tmp_path)
    assert {"python", "bash", "text"} <= {sample.language for sample in done}


@pytest.mark.parametrize("text, message", [
    ("```bash\nfalse\n```", "page.md: false"),
    ("```bash\necho one\n```\n\n```text\ntwo\n```", "page.md says\ntwo\nnot\none"),
    ("Behind no name:\n\n```python\nx = 1\n```", "a python block without the name of a file"),
])
def test_what_does_not_hold_is_an_error(text, message, tmp_path):
    """A command that fails, another output, and code that nobody can run."""
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(AssertionError, match=message):
        samples.run(page, tmp_path)


def test_what_is_not_run_has_a_reason_and_compiles(tmp_path):
    """A launch on a GPU is no longer Python by mistake."""
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs a GPU -->\n```python\nx =\n```")
    with pytest.raises(SyntaxError):
        samples.run(page, tmp_path)
