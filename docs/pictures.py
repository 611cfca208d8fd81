"""Make the pictures of the documentation from short runs: `make docs`.

    python docs/pictures.py [panel] [compare] [report] [site]      without arguments: all of them

panel*.svg      the live panel of MinAtar Breakout, half-way through 400k steps; also in terminals of three sizes
compare*        `sfactory compare` of six runs of CartPole, two learning rates and three seeds: compare.png its picture,
                compare-page*.png its page, compare-*.svg what it prints in terminals of three widths
report*.png     `sfactory report` of that Breakout run: its top, from the evaluations on, from the settings on
site*.png       the first page of the site, which `make site` must have built

The pages are drawn 1280 and 400 pixels wide, light and dark, by Chromium. A picture that cannot be made is an error.
Takes a few minutes on two cores. The pictures illustrate the commands; they are no measurements.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageChops

from sfactory.monitor.rows import read_rows

OUT = Path(__file__).resolve().parent / "pictures"
SITE = Path(__file__).resolve().parents[1] / "build" / "site" / "index.html"
TERMINAL = Path(__file__).resolve().parent / "terminal.py"
TERMINALS = ("80x24", "120x40", "200x50")
STEPS = 400_000
BREAKOUT = ["minatar/breakout", "--stop.env-steps", str(STEPS), "--eval.every", "100k", "--log.every-seconds", "2"]
CARTPOLE = [
    "classic/cartpole", "--seeds", "1..3", "--grid", "optim.lr=2e-3,2e-4", "--stop.env-steps", "60k",
    "--log.every-seconds", "1",
]  # fmt: skip
MARGIN = 24  # pixels of empty space that are kept below a page
COLORS = 128  # of a picture; with fewer, the colors of lines are mixed
TIMEOUT_S = 300.0  # for a run to reach the step at which its picture is taken


def sfactory(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "sfactory", *map(str, arguments)]


def reached(run: Path) -> int:
    """Return the env steps of the newest row of a run."""
    rows = read_rows(run)
    return int(rows[-1]["env_steps"]) if rows else 0


@contextlib.contextmanager
def breakout() -> Iterator[Path]:
    """Train Breakout: the body runs when half of the steps are done; waits for the end of the run afterwards."""
    run = Path("runs/minatar-breakout_s1")
    subprocess.run(sfactory("bench", *BREAKOUT[:1], "--seconds", "4", "--json"), check=True, stdout=subprocess.DEVNULL)
    process = subprocess.Popen(sfactory("train", *BREAKOUT, "--run.dir", run, "--quiet"))
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while reached(run) < STEPS // 2:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the run in {run} did not reach half of its steps")
            time.sleep(0.2)
        yield run
        if process.wait(TIMEOUT_S) != 0:
            sys.exit(f"the run in {run} exited with code {process.returncode}")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def draw(kind: str, folder: str | Path, picture: Path, width: str = "", height: str = "") -> None:
    """Draw what a terminal of this many columns and rows shows."""
    size = [f"--width={width}", f"--height={height}"] if width else []
    subprocess.run([sys.executable, TERMINAL, kind, folder, picture, *size], check=True)


def without_machine(page: Path) -> None:
    """Write examples for what a report says of the machine on which the pictures are made."""
    text = page.read_text()
    shown = {str(Path.cwd()): "/home/me/project", platform.release(): "6.8.0"}
    for name, example in shown.items():
        text = text.replace(name, example)
    text = text.replace(f"<td>{socket.gethostname()}</td>", "<td>my-machine</td>")
    page.write_text(text)


def screenshots(page: Path, name: str, folder: Path, section: str = "") -> None:
    """Save the top of a page as NAME.png, and narrow and dark as NAME-400.png, NAME-dark.png and NAME-400-dark.png.

    folder: for temporary files. section: id of the part of the page that is shown instead of the top.
    """
    for width, height in ((1280, 1500), (400, 1500)):
        for dark in (False, True):
            picture = OUT / f"{name}{'' if width == 1280 else f'-{width}'}{'-dark' if dark else ''}.png"
            # A window of the browser cannot be as narrow as a phone; a frame within it can.
            frame = folder / f"{width}.html"
            frame.write_text(
                f'<body style="margin:0"><iframe src="{page.as_uri()}{section and "#"}{section}" '
                f'style="border:0;width:{width}px;height:{height}px"></iframe>'
            )
            screenshot(frame, picture, (width, height), dark, folder / f"profile-{picture.stem}")


def screenshot(page: Path, picture: Path, size: tuple[int, int], dark: bool, profile: Path) -> None:
    """Save the top left corner of a page with Chromium, without the empty space below its content."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit(f"Chromium is not installed, so {picture.name} cannot be made (Debian: apt-get install chromium)")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    window = f"--window-size={max(size[0], 500)},{size[1]}"
    # Without the budget the picture may be taken before the frame is loaded.
    shown = [
        "--hide-scrollbars",
        "--allow-file-access-from-files",
        "--virtual-time-budget=5000",
        scheme,
        window,
        f"--screenshot={picture}",
    ]
    # It prints many lines about D-Bus, also on success.
    command = [browser, *quiet, *shown, f"--user-data-dir={profile}", page.as_uri()]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{browser} ended with exit code {done.returncode}: {done.stderr[-2000:]}")
    print(f"written: {picture}")
    with Image.open(picture) as whole:
        top = whole.convert("RGB").crop((0, 0, *size))
    empty = Image.new("RGB", size, top.getpixel((0, size[1] - 1)))
    box = ImageChops.difference(top, empty).getbbox()
    if box is None:
        sys.exit(f"{page} is empty, so {picture.name} cannot be made")
    top.crop((0, 0, size[0], min(size[1], box[3] + MARGIN))).quantize(COLORS).save(picture, optimize=True)


def main() -> None:
    names = sys.argv[1:] or ["panel", "compare", "report", "site"]
    if set(names) - {"panel", "compare", "report", "site"}:
        sys.exit(__doc__)
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # short names in the pictures
        if {"panel", "report"} & set(names):
            with breakout() as run:
                if "panel" in names:
                    draw("panel", run, OUT / "panel.svg")
                    for size in TERMINALS:
                        draw("panel", run, OUT / f"panel-{size}.svg", *size.split("x"))
            if "report" in names:
                subprocess.run(sfactory("report", run), check=True)
                page = Path(folder).resolve() / run / "report.html"
                without_machine(page)
                screenshots(page, "report", Path(folder))
                for section in ("evaluations", "configuration"):
                    screenshots(page, f"report-{section}", Path(folder), section)
        if "compare" in names:
            subprocess.run(sfactory("sweep", *CARTPOLE, "--jobs", "2", "--dir", "runs/sweep"), check=True)
            outputs = ["-o", OUT / "compare.png", "-o", "compare.html"]
            subprocess.run(sfactory("compare", "runs/sweep", *outputs), check=True)
            screenshots(Path("compare.html").resolve(), "compare-page", Path(folder))
            for size in TERMINALS:
                draw("compare", "runs/sweep", OUT / f"compare-{size}.svg", *size.split("x"))
        if "site" in names:
            if not SITE.is_file():
                sys.exit(f"{SITE} is not there, so site.png cannot be made: run make site")
            screenshots(SITE, "site", Path(folder))
    print("\n".join(f"docs/pictures/{path.name}  {path.stat().st_size // 1024} KiB" for path in sorted(OUT.iterdir())))


if __name__ == "__main__":
    main()
