"""Commands, and the workers of runs, as copies of the process of the tests, which has imported torch already.

An interpreter that imports torch costs 1.5 s of processor time, and most tests of whole runs look at what a run does
and writes, not at how its processes start. All else is as in a real run: a process of its own for every worker, the
reaper above it, the files and pipes that are passed on, the pickled message that it reads. Tests of what surrounds a
process (its first imports, memory, variables, streams) start real commands: `system/run_helpers.py`.
"""

import atexit
import contextlib
import gc
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from multiprocessing import resource_tracker
from types import SimpleNamespace

# Loaded here, so that no copy has to load it.
import gymnasium.envs.classic_control  # noqa: F401
import safetensors.torch  # noqa: F401
import sfactory_envs.gymnasium  # noqa: F401
import torch

import sfactory.supervisor.lockstep_run
import sfactory.tools.network_trial
import sfactory.tools.roofline
import sfactory.workers.evaluator  # noqa: F401
from sfactory.cli import main as cli
from sfactory.families import families
from sfactory.population import commands
from sfactory.supervisor import reaped_process, reaper
from sfactory.tools import bench, verify_resume

EXECV = os.execv
families()  # read here, so that no copy has to read them


@contextlib.contextmanager
def forked_workers():
    """Workers of runs that are started here meanwhile are copies of this process."""
    before, reaped_process.start_reaper = reaped_process.start_reaper, fork_reaper
    try:
        yield
    finally:
        reaped_process.start_reaper = before


def fork_reaper(words, fds):
    """In place of `reaped_process.start_reaper`."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):  # no test goes on in the copy
            _close_all_but(fds)  # a lock file, for example, is not held by the workers of a run
            _forget_handlers()
            os.execv = _run_interpreter
            reaper.main(words[words.index("worker") :])
        os._exit(1)
    return pid


def _run_interpreter(path, command):
    """In place of `os.execv` in the reaper's child: what the interpreter of `multiprocessing` would run."""
    os.execv = EXECV
    _as_a_new_process(["-c", command[-1]])
    exec(command[-2])


def _close_all_but(fds):
    """Close all files but the standard streams and these, as a new program has them."""
    kept = sorted({0, 1, 2, *fds})
    for before, after in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(before + 1, after)


def _forget_handlers():
    """Signals as a new program finds them: without handlers; ignored ones stay ignored."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _as_a_new_process(argv):
    """Streams, threads and modules as a new interpreter has them."""
    gc.freeze()  # what the tests have left is not collected here: it could close files of this process
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)  # other threads of the tests' process are not in the copy
    resource_tracker._resource_tracker._lock = threading.RLock()  # one of them may have held it
    for name, module in list(sys.modules.items()):
        if name != "__main__" and f"{os.sep}pytest-of-" in str(getattr(module, "__file__", "")):  # of another test
            del sys.modules[name]
    sys.argv = argv


class ForkedCommand(subprocess.Popen):
    """`subprocess.Popen` of `sfactory ...` or of `python FILE ...`, without starting an interpreter."""

    def __init__(self, arguments, *, env=None, preexec_fn=None, **options):
        tracker = resource_tracker.getfd()  # its process is that of the tests

        def run():
            code = 1
            try:
                os.closerange(3, tracker)  # files of the tests, and a pipe by whose end the parent is told of a start
                os.closerange(tracker + 1, os.sysconf("SC_OPEN_MAX"))
                if preexec_fn is not None:
                    preexec_fn()
                code = _command([str(word) for word in arguments], env)
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
            with contextlib.suppress(OSError, ValueError):  # closed, or without a reader
                sys.stdout.flush()
            atexit._run_exitfuncs()
            os._exit(code)

        super().__init__(arguments, preexec_fn=run, **options)


COPIES = SimpleNamespace(Popen=ForkedCommand, DEVNULL=subprocess.DEVNULL, PIPE=subprocess.PIPE)
"""In place of the module `subprocess` where a module starts runs."""


def _command(arguments, env):
    """Run a command line with these variables in this process; return the exit code."""
    command = next((place for place, word in enumerate(arguments) if os.path.basename(word) == "sfactory"), None)
    words = arguments[1:] if command is None else arguments[command:]
    _forget_handlers()
    atexit._clear()  # what the tests would do at their end
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
    _as_a_new_process(words)
    sys.path[:0] = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    reaped_process.start_reaper = fork_reaper
    for module in (bench, commands, verify_resume):  # they start runs
        module.subprocess = COPIES
    try:
        if command is not None:
            cli.main()
        runpy.run_path(os.path.abspath(words[0]), run_name="__main__")
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)


def run_forked(arguments, *, capture_output=False, timeout=None, check=False, **options):
    """`subprocess.run` of a `ForkedCommand`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with ForkedCommand(arguments, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(arguments, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done
