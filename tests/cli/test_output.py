"""What is printed meanwhile goes to stderr, in Python and in C. Whole commands are in tests/system/test_stdout.py."""

import ctypes
import os
import subprocess
import sys

import pytest

from sfactory.cli.output import stdout_to_stderr


def test_stdout_to_stderr_redirects_everything_and_restores_it(capfd):
    before = sys.stdout
    print("before")
    with stdout_to_stderr():
        print("inside")
        os.write(1, b"descriptor\n")
        ctypes.CDLL(None).puts(b"held back by C")
    print("after", flush=True)
    out, err = capfd.readouterr()
    assert sys.stdout is before
    assert out.split() == ["before", "after"]
    assert {"inside", "descriptor", "held back by C"} <= set(err.splitlines())


def test_stdout_to_stderr_writes_what_the_c_library_holds_back_before_it_restores_stdout():
    code = (
        "import ctypes\nfrom sfactory.cli.output import stdout_to_stderr\n"
        "with stdout_to_stderr():\n    ctypes.CDLL(None).puts(b'held back')\nprint('result')"
    )
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # also of the C library
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert (done.stdout, done.stderr) == ("result\n", "held back\n")


def test_stdout_to_stderr_restores_stdout_after_an_error(capfd):
    with pytest.raises(KeyError), stdout_to_stderr():
        raise KeyError
    print("after", flush=True)
    assert capfd.readouterr().out == "after\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_stdout_to_stderr_works_where_a_stream_is_closed(closed):
    code = "from sfactory.cli.output import stdout_to_stderr as s\nwith s(): print('x')\nimport os; os._exit(0)"
    assert subprocess.run(["sh", "-c", f'exec "{sys.executable}" -c "{code}" {closed}']).returncode == 0
