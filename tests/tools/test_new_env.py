"""`sfactory new`: the file it writes works, and no file is lost."""

import ast
from pathlib import Path

import pytest

from sfactory.cli.main import main
from sfactory.errors import CommandError
from sfactory.tools import new_env
from sfactory.tools.new_env import NewEnv, parse_new_env, source, write_new_env


@pytest.mark.parametrize(
    ("word", "path", "name", "target"),
    [
        ("my_env", "my_env.py", "MyEnv", "my_env:MyEnv"),
        ("my_env:Catch", "my_env.py", "Catch", "my_env:Catch"),
        ("my_env.py:Catch", "my_env.py", "Catch", "my_env.py:Catch"),
        ("sub/my_env.py", "sub/my_env.py", "MyEnv", "sub/my_env.py:MyEnv"),
        ("sub/my_env:Catch", "sub/my_env.py", "Catch", "sub/my_env.py:Catch"),
    ],
)
def test_new_env_is_named_as_in_other_commands(word, path, name, target):
    assert parse_new_env(word) == NewEnv(Path(path), name, target)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("my_env:class", "class cannot be the name of a class"),
        ("my_env:My Env", "My Env cannot be the name of a class"),
        ("my-env", "my-env.py cannot be imported"),
        (":Catch", ".py cannot be imported"),
        ("random", "random is the name of an installed module"),
        ("sub/gymnasium.py:Catch", "gymnasium is the name of an installed module"),
        ("my_env.py:Box", "Box is imported in the file"),
        ("gymnasium/my_env.py:Catch", "gymnasium is the name of a family of environments"),
    ],
)
def test_new_env_refuses_names_that_python_cannot_import_or_would_confuse(word, reason):
    with pytest.raises(CommandError, match=f"^{word}: {reason}"):
        parse_new_env(word)


def test_source_is_python_with_the_class_alone_and_imports_no_torch():
    tree = ast.parse(source("Dock"))
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)] == ["Dock"]
    imported = [node.names[0].name if isinstance(node, ast.Import) else node.module
                for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]  # fmt: skip
    assert imported == ["gymnasium", "numpy", "gymnasium.spaces"]


def test_new_writes_an_environment_that_passes_every_check_and_never_writes_over_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def typed(*words):
        with pytest.raises(SystemExit) as ended:
            main(words)
        return ended.value.code, *capsys.readouterr()

    code, out, line = typed("new", "sub/dock.py:Dock")
    assert (code, line) == (0, "sfactory: written (exit 0): sub/dock.py; change it into your environment\n")
    commands = [row.split(None, 1)[1] for row in out.splitlines()]
    assert commands == [
        "sfactory check-env sub/dock.py:Dock",
        "sfactory train sub/dock.py:Dock --stop.env-steps 150k --run.dir runs/dock",
        "sfactory eval runs/dock --greedy --video dock.mp4",
    ]
    code, out, _ = typed(*commands[0].split()[1:], "--seconds", "0.5")
    assert code == 0
    assert "warn" not in out
    (tmp_path / "sub/dock.py").write_text("mine")
    code, _, line = typed("new", "sub/dock.py:Dock")
    sentence = "sub/dock.py exists; it was not changed. Choose another name"
    assert (code, line) == (2, f"sfactory: usage (exit 2): {sentence}\n")
    assert (tmp_path / "sub/dock.py").read_text() == "mine"


def test_new_env_leaves_no_file_if_it_cannot_be_written(tmp_path, monkeypatch):
    env = NewEnv(tmp_path / "a.py", "A", "a:A")
    monkeypatch.setattr(new_env, "source", lambda name: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_new_env(env)
    assert not env.path.exists()
    monkeypatch.setattr(new_env, "source", lambda name: "\ud800")  # cannot be encoded: fails while it is written
    with pytest.raises(UnicodeEncodeError):
        write_new_env(env)
    assert not env.path.exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CommandError, match="file is not a folder"):
        write_new_env(NewEnv(tmp_path / "file/a.py", "A", "file/a.py:A"))
