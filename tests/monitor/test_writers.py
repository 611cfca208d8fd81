"""Writers: rows in every output, one increasing curve after a resume, no output error stops training."""

import functools
import json
import os
import re
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sfactory.config import Config, Log, Stop
from sfactory.files import replace_text
from sfactory.monitor.panel import Snapshot
from sfactory.monitor.writers import METRICS_FILE, Writers, drop_rows_after, last_evaluated


@pytest.fixture
def config():
    return Config(log=Log(console_seconds=0.0))


def rows(run_dir):
    return [json.loads(line) for line in (run_dir / METRICS_FILE).read_text().splitlines()]


def curve(run_dir, tag="charts/SPS"):
    accumulator = EventAccumulator(str(run_dir / "tb"))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def write(run_dir, config, steps, value=1.0, resume=None):
    writers = Writers(run_dir, config, resume)
    for step in steps:
        writers.row(step, step / 10, {"charts/SPS": value})
    writers.close()


def test_writers_write_a_row_to_jsonl_and_tensorboard(tmp_path, config):
    write(tmp_path, config, [10, 20], 2.5)
    assert [(r["env_steps"], r["seconds"], r["charts/SPS"]) for r in rows(tmp_path)] == [(10, 1.0, 2.5), (20, 2.0, 2.5)]
    assert "system/cpu" in rows(tmp_path)[0]
    assert curve(tmp_path) == [(10, 2.5), (20, 2.5)]


def test_writers_flush_every_row(tmp_path, config):
    writers = Writers(tmp_path, config, None)
    writers.row(10, 1.0, {"charts/SPS": 1.0})
    assert len(rows(tmp_path)) == 1
    assert curve(tmp_path) == [(10, 1.0)]
    writers.close()


def test_writers_resume_gives_one_strictly_increasing_curve(tmp_path, config):
    write(tmp_path, config, [10, 20, 30, 40], 1.0)
    write(tmp_path, config, [25, 35], 2.0, resume=20)  # the checkpoint was at 20: 30 and 40 are dropped
    expected = [(10, 1.0), (20, 1.0), (25, 2.0), (35, 2.0)]
    assert [(r["env_steps"], r["charts/SPS"]) for r in rows(tmp_path)] == expected
    assert curve(tmp_path) == expected
    write(tmp_path, config, [26], 3.0, resume=25)
    expected = [(10, 1.0), (20, 1.0), (25, 2.0), (26, 3.0)]
    assert [(r["env_steps"], r["charts/SPS"]) for r in rows(tmp_path)] == expected
    assert curve(tmp_path) == expected


def test_writers_of_a_new_run_drop_rows_of_an_earlier_launch(tmp_path, config):
    """A requeued job that was stopped before its first checkpoint."""
    write(tmp_path, config, [10, 20, 30], 1.0)
    write(tmp_path, config, [5, 15], 2.0)
    expected = [(5, 2.0), (15, 2.0)]
    assert [(r["env_steps"], r["charts/SPS"]) for r in rows(tmp_path)] == expected
    assert curve(tmp_path) == expected


def test_writers_leave_out_a_second_row_at_the_same_step(tmp_path, config):
    write(tmp_path, config, [10, 10, 20])
    assert [r["env_steps"] for r in rows(tmp_path)] == [10, 20]
    assert [step for step, _ in curve(tmp_path)] == [10, 20]


def test_drop_rows_after_drops_an_incomplete_last_line(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_text('{"env_steps": 1}\n{"env_steps": 2}\n{"env_st')
    drop_rows_after(tmp_path, 2)
    assert rows(tmp_path) == [{"env_steps": 1}, {"env_steps": 2}]
    (tmp_path / "empty").mkdir()
    drop_rows_after(tmp_path / "empty", 2)
    assert not list((tmp_path / "empty").iterdir())


def test_writers_write_non_finite_numbers_as_null(tmp_path, config):
    write(tmp_path, config, [10], float("nan"))
    assert rows(tmp_path)[0]["charts/SPS"] is None


def test_status_json_is_replaced_atomically(tmp_path, config, monkeypatch):
    writers, folder = Writers(tmp_path, config, None), os.open(tmp_path, os.O_DIRECTORY)
    writers.status({"state": "running", "env_steps": 1}, folder)

    def broken(*names, **folders):
        raise OSError("killed before the rename")

    monkeypatch.setattr(os, "replace", broken)
    writers.status({"state": "running", "env_steps": 2}, folder)
    assert json.loads((tmp_path / "status.json").read_text())["env_steps"] == 1
    monkeypatch.undo()
    writers.status({"state": "finished"}, folder)
    assert json.loads((tmp_path / "status.json").read_text()) == {"state": "finished"}
    writers.close()
    os.close(folder)


def test_writers_report_a_missing_folder_once_per_output(tmp_path, config, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    writers = Writers(blocked, config, None)
    for step in range(1, 5):
        writers.row(step, step, {"charts/SPS": 1.0})
        writers.log("something", echo=False)
        writers.status({"state": "running"}, -1)
    writers.close()
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert sorted(line.split()[1] for line in warnings) == ["TensorBoard", "log.txt", "metrics.jsonl", "status.json"]


def test_writers_neither_raise_nor_block_on_a_full_disk(tmp_path, config, capsys):
    writers = Writers(tmp_path, config, None)

    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

        flush = close = lambda self: None

    writers._rows = Full()
    writers._tensorboard._writer._writer = Full()
    for step in range(1, 50):  # more than any queue holds
        writers.row(step, step, {"charts/SPS": 1.0})
    writers.close()
    assert capsys.readouterr().err.count("No space left") == 2


def test_log_writes_all_lines_to_the_file_and_the_first_to_the_console(tmp_path, config, capsys):
    writers = Writers(tmp_path, config, None)
    writers.log("environment 3: boom\nTraceback: 1\nTraceback: 2")
    writers.log("not shown", echo=False)
    writers.close()
    assert "Traceback: 2" in (tmp_path / "log.txt").read_text()
    assert capsys.readouterr().err == "environment 3: boom\n"


def progress(env_steps):
    row = {"charts/SPS": 10.0, "charts/FPS": 10.0} if env_steps else {}
    return Snapshot(row, env_steps, 1.0, Stop(env_steps=200), name="a", env="minatar/breakout")


def test_progress_without_a_terminal_is_a_line_every_console_seconds(tmp_path, capsys):
    writers = Writers(tmp_path, Config(log=Log(console_seconds=1000.0)), None)
    writers.console(progress(0))  # before the first row
    writers.console(progress(10))
    writers.console(progress(20))
    writers.close()
    captured = capsys.readouterr()
    assert captured.err == "10 steps | 10 steps/s | 5%, 19 s left\n"
    assert captured.out == ""  # stdout is for results


def test_log_quiet_prints_nothing(tmp_path, capsys):
    writers = Writers(tmp_path, Config(log=Log(quiet=True, console_seconds=0.0)), None)
    writers.console(progress(10))
    writers.log("something")
    writers.close()
    assert capsys.readouterr().err == ""
    assert "something" in (tmp_path / "log.txt").read_text()


def test_tensorboard_has_the_settings_of_every_launch_as_text(tmp_path, config):
    write(tmp_path, config, [10])
    write(tmp_path, config, [20], resume=10)
    accumulator = EventAccumulator(str(tmp_path / "tb"))
    accumulator.Reload()
    assert accumulator.Tags()["tensors"] == ["settings/text_summary"]
    events = accumulator.Tensors("settings/text_summary")
    assert [event.step for event in events] == [0, 10]
    text = events[-1].tensor_proto.string_val[0].decode()
    assert "    [optim]\n" in text
    assert "console_seconds = 0.0" in text
    metadata = accumulator.SummaryMetadata("settings/text_summary")
    assert metadata.plugin_data.plugin_name == "text"


def test_replace_text_leaves_no_temporary_file(tmp_path):
    replace_text(tmp_path / "a", "1")
    replace_text(tmp_path / "a", "2")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "2"


TERMINAL = """
import os, pty, sys
pid, fd = pty.fork()
if pid == 0:
    import tempfile, time
    from pathlib import Path
    from sfactory.config import Config, Stop
    from sfactory.monitor.panel import Snapshot
    from sfactory.monitor.writers import Writers
    w = Writers(Path(tempfile.mkdtemp()), Config(), None)
    row = {"charts/SPS": 10.0, "charts/FPS": 10.0}
    stop = Stop(env_steps=200)
    w.console(Snapshot(row, 10, 1.0, stop, "a", "minatar/breakout")); w.log("sampler-0 exited"); time.sleep(0.8)
    w.console(Snapshot(row, 20, 1.0, stop, "a", "minatar/breakout")); w.close()
    os._exit(0)
seen = b""
try:
    while chunk := os.read(fd, 4096): seen += chunk
except OSError: pass
os.waitpid(pid, 0)
sys.stdout.buffer.write(seen)
"""


@functools.cache  # a second in a process of its own, and several tests look at the same output
def on_a_terminal(**environ):
    environ = {**os.environ, "TERM": "xterm", "PYTHONUTF8": "1", "COLUMNS": "80", "LINES": "24", **environ}
    command = [sys.executable, "-c", TERMINAL]
    return subprocess.run(command, timeout=30, env=environ, capture_output=True, check=True).stdout.decode()


def test_live_panel_on_a_terminal_keeps_events_above_it():
    seen = on_a_terminal()
    words = re.sub("\x1b\\[[0-9;]*m", "", seen)
    assert "sampler-0 exited\r\n╭─ sfactory · minatar/breakout ─" in words
    assert "10 of 200 steps" in words
    assert "20 of 200 steps" in words
    assert seen.rindex("\x1b[?25l") < seen.rindex("\x1b[?25h")  # the cursor is back


def test_live_panel_without_colours_under_no_color():
    color = re.compile("\x1b\\[[0-9;]*(3[0-7]|9[0-7])m")
    assert color.search(on_a_terminal())
    assert not color.search(on_a_terminal(NO_COLOR="1"))


def test_dumb_terminal_gets_progress_lines():
    seen = on_a_terminal(TERM="dumb")
    assert seen.splitlines()[0] == "10 steps | 10 steps/s | 5%, 19 s left"
    assert "\x1b" not in seen


def test_live_panel_without_unicode_is_ascii():
    assert on_a_terminal(PYTHONUTF8="0", PYTHONIOENCODING="ascii").isascii()
    assert "+- sfactory" in re.sub("\x1b\\[[0-9;]*m", "", on_a_terminal(PYTHONUTF8="0", PYTHONIOENCODING="ascii"))


def test_recorder_does_not_import_rich_or_torch():
    code = "import sys, sfactory.run.recorder; sys.exit('rich' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_tensorboard_shows_an_evaluation_at_the_step_of_its_policy(tmp_path, config):
    writers = Writers(tmp_path, config, None)
    writers.row(10, 1.0, {"charts/SPS": 1.0})
    writers.row(30, 3.0, {"charts/SPS": 3.0, "eval/iqm": 7.0, "eval/env_steps": 12.0})
    writers.row(50, 5.0, {"charts/SPS": 5.0, "eval/iqm": 8.0, "eval/env_steps": 31.0})
    writers.close()
    assert curve(tmp_path) == [(10, 1.0), (30, 3.0), (50, 5.0)]
    assert curve(tmp_path, "eval/iqm") == [(12, 7.0), (31, 8.0)]
    assert [(row["env_steps"], row.get("eval/iqm")) for row in rows(tmp_path)] == [(10, None), (30, 7.0), (50, 8.0)]
    assert last_evaluated(tmp_path) == 31
    Writers(tmp_path, config, 40).close()  # a resume at 40: the row with the evaluation of 31 is dropped
    assert last_evaluated(tmp_path) == 12
    assert last_evaluated(tmp_path / "nothing") == 0


def test_writers_escape_what_environments_say_on_the_console(tmp_path, config, capsys):
    with_escape = "sampler-0: \x1b]0;title\x07"
    writers = Writers(tmp_path, config, None)
    writers.log(with_escape)
    writers.close()
    assert capsys.readouterr().err == "sampler-0: \\x1b]0;title\\x07\n"


def test_drop_rows_after_keeps_rows_beside_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / METRICS_FILE).write_bytes(
        b'{"env_steps": 1}\n\xff\xfe\n{"env_steps": 2, "\xff": 1}\n{"env_steps": 3}\n'
    )
    drop_rows_after(tmp_path, 2)
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 2
