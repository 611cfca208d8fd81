"""docs/extending.md: every example is taken from the page and run.

Objective and trace are added to a copy of the source, and the tests from the page are run there.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, blocks, commands, named
from forked_processes import run_forked

SFACTORY = str(
    Path(sys.executable).parent / "sfactory"
)  # the console script, which unlike -m does not add the current folder to sys.path
PAGE = ROOT / "docs" / "extending.md"
pytestmark = pytest.mark.timeout(300)
SMALL = [
    "--sampling.envs-per-group", "4", "--sampling.rollout-length", "16", "--batch.minibatches", "2",
    "--stop.env-steps", "2000", "--run.mode", "lockstep", "--run.dir", "run", "--quiet",
]  # fmt: skip


OF_OWN = [*SMALL, "--checkpoint.exact", "false", "--log.every-updates", "1"]  # Guess has no snapshot()


def typed(*needle):
    """The command of the page that contains these words."""
    (words,) = [words for words in commands(PAGE) if words[0] in ("train", "check-env") and set(needle) <= set(words)]
    return words


def run(folder, *words, path=()):
    """Run sfactory in `folder` with `path` first on PYTHONPATH and return its output."""
    paths = [*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    plain = words[0] == "-m" or words[0].endswith(".py")
    command = [sys.executable, *words] if plain else [SFACTORY, *words]
    start = subprocess.run if path or plain else run_forked  # `path` may have another sfactory
    done = start(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def trained(folder):
    """Steps and config.toml of the run."""
    return json.loads((folder / "run/status.json").read_text())["env_steps"], (folder / "run/config.toml").read_text()


def write(folder, *names, language="python"):
    """Write blocks of the page as the files that they are named after."""
    for name in names:
        (folder / name).write_text(named(PAGE, name, language))


def test_extending_environment_in_one_file_is_checked_trained_and_evaluated(tmp_path):
    write(tmp_path, "my_file.py")
    run(tmp_path, *typed("check-env", "my_file:Guess"))
    run(tmp_path, *typed("train", "my_file:Guess", "--env.settings.choices"), "--run.dir", "run", "--quiet")
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["training_return"] >= 9, status  # as the page says; a random policy has 2.5
    assert json.loads(run(tmp_path, "eval", "run", "--episodes", "20", "--greedy", "--json"))["mean"] >= 9


def last_row(folder):
    return json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("needle", "metric", "low", "high"),
    [
        (("--config", "my_wrappers.toml"), "charts/episodic_return", 0.5, 5.0),  # half of at most ten
        (("--env.wrappers", "TimeLimit"), "charts/episodic_length", 5.0, 5.0),
    ],
)
def test_extending_wrappers_train(tmp_path, needle, metric, low, high):
    write(tmp_path, "my_file.py", "my_wrappers.py")
    write(tmp_path, "my_wrappers.toml", language="toml")
    run(tmp_path, *typed("train", "my_file:Guess", *needle), *OF_OWN)
    assert low <= last_row(tmp_path)[metric] <= high


@pytest.mark.slow
def test_extending_number_for_every_copy_reaches_the_factory(tmp_path):
    write(tmp_path, "my_file.py", "my_ports.py")
    shown = '    print(env.log, env.address[1], file=open("built.txt", "a"))\n    return env\n'
    file = tmp_path / "my_ports.py"
    file.write_text(file.read_text().replace("    return env\n", shown))
    run(tmp_path, *typed("train", "my_ports:on_port"), *OF_OWN)
    built = dict(line.split() for line in (tmp_path / "built.txt").read_text().splitlines())
    assert len(built) >= 8
    assert all(log == f"game-{int(port) - 6000}.txt" for log, port in built.items())


@pytest.mark.slow
def test_extending_family_is_installed_checked_and_trained(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    write(source, "my_file.py", "my_games.py")
    write(source, "pyproject.toml", language="toml")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True)
    assert "mygames" in run(tmp_path, "envs", path=[site])
    run(tmp_path, *typed("check-env", "mygames/guess"), path=[site])
    run(tmp_path, *typed("train", "mygames/guess"), "--run.dir", "run", "--quiet", path=[site])
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["training_return"] >= 9, status  # a random policy has 2.5


@pytest.mark.slow
def test_extending_encoder_trains_and_evaluates(tmp_path):
    (tmp_path / "my_net.py").write_text(named(PAGE, "my_net.py"))
    run(tmp_path, *typed("my_net:Wide"), *SMALL)
    assert trained(tmp_path)[0] >= 2000
    assert json.loads(run(tmp_path, "eval", "run", "--episodes", "2", "--json"))["episodes"] == 2


@pytest.mark.slow
def test_extending_whole_network_trains_and_evaluates(tmp_path):
    (tmp_path / "my_both.py").write_text(named(PAGE, "my_both.py"))
    run(tmp_path, *typed("my_both:Both"), *SMALL)
    assert 'network = "my_both:Both"' in trained(tmp_path)[1]
    assert json.loads(run(tmp_path, "eval", "run", "--episodes", "2", "--json"))["episodes"] == 2


@pytest.fixture
def checkout(tmp_path):
    """A copy of the installed packages."""
    copy = tmp_path / "checkout"
    leave = shutil.ignore_patterns("__pycache__")
    for folder, package in {"sfactory": "sfactory", "envs": "sfactory_envs", "configs": "sfactory_configs"}.items():
        shutil.copytree(ROOT / folder, copy / package, ignore=leave)
    return copy


def apply(checkout, number):
    """Apply the diff block of the page with this number."""
    block = blocks(PAGE, "diff")[number].text.splitlines()
    path = checkout / block[0].removeprefix("--- ")
    old, new = ("\n".join(line[1:] for line in block[1:] if line[0] == sign) for sign in "-+")
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} does not contain the line that the page changes: {old.strip()}"
    path.write_text(text.replace(old, new))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("file", "test", "diffs", "flag", "name"),
    [
        (
            "sfactory/algo/surrogates/bounded.py",
            "tests/algo/test_bounded.py",
            range(4),
            "--surrogate.objective",
            "bounded",
        ),
        ("sfactory/algo/trace.py", "tests/algo/test_cut.py", [4], "--trace.estimator", "cut"),
    ],
)
def test_extending_function_is_added_tested_and_trained(checkout, tmp_path, file, test, diffs, flag, name):
    with (checkout / file).open("a") as source:
        source.write("\n\n" + named(PAGE, file))
    for number in diffs:
        apply(checkout, number)
    (tmp_path / "test_added.py").write_text(named(PAGE, test))
    output = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_added.py", path=[checkout])
    assert "1 passed" in output
    run(tmp_path, *typed(flag, name), *SMALL, path=[checkout])
    steps, settings = trained(tmp_path)
    assert steps >= 2000
    assert f'= "{name}"' in settings


def test_extending_examples_are_all_tested():
    names = {block.text.partition("\n")[0].removeprefix("# ") for block in blocks(PAGE, "python")}
    assert names == {
        "my_file.py", "my_wrappers.py", "my_ports.py", "my_games.py", "my_both.py", "my_net.py",
        "sfactory/algo/surrogates/bounded.py", "sfactory/algo/trace.py",
        "tests/algo/test_bounded.py", "tests/algo/test_cut.py",
    }  # fmt: skip
    assert len(blocks(PAGE, "diff")) == 5
