"""What environments do to the process of a command that steps them itself."""

import subprocess
import sys

THREAD = """
import threading, time
from base import Task

class Noisy(Task):
    def __init__(self):
        super().__init__()
        threading.Thread(target=self.noise).start()  # not a daemon: Python waits for it at the end

    def noise(self):
        while True:
            time.sleep(0.05)
"""


def test_check_env_ends_although_a_thread_of_an_environment_does_not(tmp_path, request):
    (tmp_path / "noisy.py").write_text(THREAD)
    (tmp_path / "base.py").write_text((request.config.rootpath / "tests/envs/corpus/base.py").read_text())
    command = [sys.executable, "-m", "sfactory", "check-env", "noisy:Noisy", "--seconds", "0.05"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "passed every check" in done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("sfactory train noisy:Noisy")
