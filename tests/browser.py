"""Pages in a real browser, without a network and without a window."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
REPORT = """<script>addEventListener("load", async () => {
  const report = %s;
  document.body.dataset.report = JSON.stringify(await report());
});</script>"""


def data_of(page: Path) -> dict[str, Any]:
    """What a page holds for its script."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>',
                      page.read_text(), re.S)
    return json.loads(found[1])


def browse(page: Path, report: str, width: int = 1280) -> tuple[Any, str, list[str]]:
    """Open a copy of a page; `report`, a function in JavaScript, may act on it and tells what it
    found. Returns that, the elements, and what the console says. Skips without chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    copy = page.with_name(f"copy of {page.name}")
    copy.write_text(page.read_text().replace("</body>", REPORT % report + "</body>"))
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={page.parent / 'browser'}", f"--window-size={width},2000",
         "--virtual-time-budget=5000", "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, timeout=120)
    found = re.search(r'data-report="([^"]*)"', done.stdout)
    said = re.findall(r"CONSOLE.*", done.stderr)
    assert found, said or done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), done.stdout, said
