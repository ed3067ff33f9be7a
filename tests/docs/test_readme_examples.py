"""Every Python block of the documentation runs; the blocks of one page share names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "ml" / "README.md",
    ROOT / "docs" / "data.md",
    ROOT / "docs" / "forecasting.md",
    ROOT / "docs" / "multitask.md",
    ROOT / "docs" / "portfolio.md",
    ROOT / "docs" / "regimes.md",
    ROOT / "docs" / "transfer.md",
    *sorted((ROOT / "docs" / "algorithms").glob("*.md")),
]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # Blocks that save files save them here.
    text = page.read_text()
    namespace = {"__name__": "__readme__"}
    blocks = list(PYTHON_BLOCK.finditer(text))
    assert blocks, f"{page.name} shows no Python"
    for block in blocks:
        first_line = text.count("\n", 0, block.start(1))
        # Leading newlines make a traceback point at the line of the page.
        exec(compile("\n" * first_line + block.group(1), str(page), "exec"), namespace)
