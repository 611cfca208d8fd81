"""Run folders made up, with numbers a person can check."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sfactory.config import parsing, presets
from sfactory.config.toml_file import to_toml


@pytest.fixture
def fabricate(tmp_path):
    """fabricate("a1", [1.0, 2.0], **{"optim.lr": 1e-3}) writes tmp_path/runs/a1: a row per return, 1000 steps apart."""

    def make(name, returns=(), target="minatar/breakout", step=1000, speed=100.0, extra=None, **values):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        layer = {key: parsing.RawValue(value) for key, value in values.items()}
        config = parsing.build(*presets.target_layers(target), layer)
        (folder / "config.toml").write_text(to_toml(config))
        rows = []
        for i, value in enumerate(returns, start=1):
            row = {"env_steps": i * step, "seconds": i * step / speed}
            if isinstance(value, dict):
                row |= value
            elif value is not None:
                row["charts/episodic_return"] = value
            rows.append(row | (extra(i) if extra else {}))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        status = {"state": "finished", "exit": 0, "sentence": "stop.env-steps reached", "env_steps": len(rows) * step}
        (folder / "status.json").write_text(json.dumps(status))
        return folder

    (tmp_path / "runs").mkdir()
    return make


@pytest.fixture
def runs(tmp_path) -> Path:
    return tmp_path / "runs"


CUT = """<body style="margin:0"><iframe src="{url}" style="border:0;width:{width}px;height:900px"></iframe><script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument, cut = [], shown = [];
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {{
    const node = walker.currentNode, range = page.createRange();
    range.selectNodeContents(node);
    const boxes = [...range.getClientRects()].filter(box => box.width);
    if (!node.data.trim() || !boxes.length || !node.parentElement.checkVisibility()) continue;
    shown.push(node.data.trim());
    const around = node.parentElement.closest("svg, .tile, figure, .scroll, pre, main").getBoundingClientRect();
    const left = Math.min(...boxes.map(box => box.left)), right = Math.max(...boxes.map(box => box.right));
    if (left < around.left - 0.5 || right > around.right + 0.5) cut.push(node.data.trim());
  }}
  for (const box of page.querySelectorAll(".scroll")) if (box.scrollWidth > box.clientWidth) cut.push(box.innerText);
  const {{scrollWidth, clientWidth}} = page.documentElement;
  document.title = JSON.stringify({{scrollWidth, clientWidth, cut, shown}});
}})</script>"""


@pytest.fixture
def in_chromium(tmp_path):
    """in_chromium(page, 400): widths of a page in a frame of that width, and the texts outside of their box."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "Chromium is not installed: install it or omit -m browser"

    def measure(page: Path, width: int) -> dict:
        frame = tmp_path / "frame.html"
        frame.write_text(CUT.format(url=page.as_uri(), width=width))
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
            "--allow-file-access-from-files", "--virtual-time-budget=5000", "--window-size=1400,900",
            "--hide-scrollbars", "--dump-dom", frame.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout, re.DOTALL)[1]))

    return measure
