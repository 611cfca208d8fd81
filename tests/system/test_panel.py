"""The live panel of real runs: on a terminal, and its stage times."""

import fcntl
import os
import pty
import re
import statistics
import struct
import termios
import time

from forked_processes import run_forked
from run_helpers import SMALL, command, rows

from sfactory.config.flags import split_flags
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.monitor.known_rooflines import store_roofline
from sfactory.monitor.table import STAGES


def until(fd, condition, seconds=90.0):
    """Read the terminal until the expected text appears or output ends; returns everything."""
    seen, end = b"", time.monotonic() + seconds
    while time.monotonic() < end and not condition(seen.decode(errors="replace")):
        try:
            seen += os.read(fd, 65536)
        except OSError:  # no process has the other end open
            break
    return seen.decode(errors="replace")


def plain(text):
    """Remove color codes."""
    return re.sub("\x1b\\[[0-9;]*m", "", text)


def test_panel_is_shown_on_a_terminal_and_ctrl_c_restores_the_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    flags, _, (target,) = split_flags(["gymnasium/CartPole-v1", *SMALL], {})
    store_roofline(build(*target_layers(target), flags), 50_000)  # as `sfactory bench` does
    words = command("train", "gymnasium/CartPole-v1", "--run.dir", tmp_path / "run", *SMALL)
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(words[0], words)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    seen = until(fd, lambda text: ("-bound" in text or "in turns" in text) and "% roofline" in plain(text))
    assert re.search("(learner|sampling|inference)-bound|in turns", seen)
    share = float(re.search("([0-9]+)% roofline", plain(seen))[1])
    percent = [100 * row["charts/SPS"] / 50_000 for row in rows(tmp_path / "run")]  # differ much on a busy machine
    assert min(percent) - 1 <= share <= max(percent) + 1
    os.write(fd, b"\x03")
    rest = until(fd, lambda text: False)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    shown, _, below = rest.rpartition("\x1b[?25h")  # the cursor is back
    assert "\x1b[?25l" not in below
    assert "╰─ interrupted" in plain(shown)  # the last picture stays
    assert re.match(r"(\x1b\S*)?\s*sfactory: interrupted \(exit 130\)", below)
    os.close(fd)


def test_lockstep_stage_shares_of_all_workers_sum_to_one(tmp_path):
    words = ["--run.mode", "lockstep", "--run.dir", tmp_path / "run", *SMALL, "--sampling.num-samplers", "1"]
    words += ["--stop.env-steps", "8k", "--log.every-updates", "10", "--quiet", "--checkpoint.exact", "false"]
    run_forked(command("train", "gymnasium/CartPole-v1", *words), check=True, timeout=90, capture_output=True)
    busy = [sum(1.0 - row[f"stage/{kind}/wait"] for kind in STAGES) for row in rows(tmp_path / "run")[1:]]
    # Writing rows is in no stage, and takes long where other programs use the disk; windows are one update apart.
    assert len(busy) > 5
    assert 0.5 < statistics.median(busy) < 1.1
    assert max(busy) < 1.3
