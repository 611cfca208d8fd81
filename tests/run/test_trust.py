"""Code that a run's settings name is imported only if the user vouched for it, and from where training began."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from sfactory import pickled
from sfactory.config import Config
from sfactory.envs.python_target import CODE_FOLDER, code_folder, load_target
from sfactory.errors import CommandError
from sfactory.run import trust
from sfactory.run.trust import kept_code, modules_of, read_record, record_run, vouched_code, vouched_opponent


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty state folder, and a working folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def config(env="", encoder="auto", wrappers=""):
    base = Config()
    return replace(base, env=replace(base.env, name=env, wrappers=wrappers), model=replace(base.model, encoder=encoder))


OWN = config("mine_of_trust:Env")


def run_folder(home, name="run"):
    (home / name).mkdir()
    return home / name


def vouched(run, settings=OWN, given=False):
    with vouched_code(run, settings, given, "sfactory eval"):
        return code_folder()


def test_modules_of_finds_every_setting_that_names_code():
    assert list(modules_of(config("a.b:Env,sub/c.py:Env"))) == ["a.b", "sub/c.py"]
    assert list(modules_of(config("pettingzoo/sub/g.py:Game,pettingzoo/h:make"))) == ["sub/g.py", "h"]
    found = modules_of(config("gymnasium/d:Id-v0", "e:Net", "f:wrap,TimeAwareObservation"))
    assert list(found) == ["e", "d", "f"]
    assert found["d"] == "env.name gymnasium/d:Id-v0"
    assert not modules_of(config("gymnasium/CartPole-v1,minatar/breakout", "mlp", "TimeAwareObservation"))
    assert list(modules_of(config("faults/steps", wrappers="RecordVideo"))) == [
        "sfactory_envs.faults",
        "gymnasium.wrappers.RecordVideo",
    ]


def test_vouched_code_refuses_code_of_a_run_that_this_user_did_not_train(home):
    with pytest.raises(CommandError) as error:
        vouched(run_folder(home))
    assert error.value.exit_code == 2
    assert f"sfactory eval {home / 'run'} --trust" in str(error.value)
    assert "env.name mine_of_trust:Env" in str(error.value)
    assert vouched(home / "run", given=True) == home / "work"


def test_vouched_code_needs_no_record_for_environments_of_installed_packages(home):
    vouched(run_folder(home), config("gymnasium/CartPole-v1", "nature"))


def test_record_run_makes_the_code_of_a_run_trusted_from_every_folder(home, monkeypatch):
    run = run_folder(home)
    record_run(run, OWN)
    assert read_record(run).folder == home / "work"
    monkeypatch.chdir(run)
    assert vouched(run) == home / "work"
    assert CODE_FOLDER not in os.environ
    with pytest.raises(CommandError, match="trained with other modules"):
        vouched(run, config("mine_of_trust:Env", "other:Net"))


def test_record_run_writes_nothing_for_a_run_without_code_of_its_own(home):
    record_run(run_folder(home), config("gymnasium/CartPole-v1"))
    assert not (home / "state").exists()
    assert not list((home / "run").iterdir())


def test_code_of_a_trusted_run_is_never_taken_from_its_folder(home, monkeypatch):
    """The folder came back with a module of the name that was trained with, which is gone where training began."""
    run = run_folder(home)
    record_run(run, OWN)
    (run / "mine_of_trust.py").write_text("class Env: pass\n")
    monkeypatch.chdir(run)
    sys.path[:] = ["", str(run), *sys.path]
    with vouched_code(run, OWN, False, "sfactory eval"):
        with pytest.raises(ValueError, match="no module mine_of_trust"):
            load_target("mine_of_trust:Env")
        (home / "work" / "mine_of_trust.py").write_text("class Env: place = 'work'\n")
        assert load_target("mine_of_trust:Env").place == "work"
    assert sys.path[0] == ""
    del sys.modules["mine_of_trust"]


def test_processes_that_are_started_in_vouched_code_look_for_modules_there_too(home, monkeypatch):
    run = run_folder(home)
    record_run(run, OWN)
    (home / "work" / "mine_of_trust.py").write_text("class Env: place = 'work'\n")
    monkeypatch.chdir(run)
    script = "from sfactory.envs.python_target import load_target; print(load_target('mine_of_trust:Env').place)"
    with vouched_code(run, OWN, False, "sfactory eval"):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "work\n"


@pytest.mark.parametrize("run_id", ["../../elsewhere", "", "x" * 32, "0" * 32])
def test_record_of_another_run_is_not_used(home, run_id):
    run = run_folder(home)
    (run / "run_id").write_text(run_id)
    (home / "elsewhere.json").write_text(json.dumps({"modules": ["mine_of_trust"], "folder": str(run)}))
    with pytest.raises(CommandError):
        vouched(run)


def test_vouched_code_accepts_modules_of_the_users_own_script_but_no_installed_ones(home, monkeypatch):
    (home / "work" / "mine_of_trust.py").write_text("class Env: pass\n")
    load_target("mine_of_trust:Env")
    vouched(run_folder(home))
    for name in ("subprocess:run", "os:system", "numpy:load", "sfactory.api:train", "sfactory_envs.faults:make"):
        load_target(name)
        with pytest.raises(CommandError):
            vouched(home / "run", config(name))
    del sys.modules["mine_of_trust"]


def test_a_user_without_a_home_has_no_record_and_can_still_trust(home, monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(trust.os.path, "expanduser", lambda path: path)
    run = run_folder(home)
    record_run(run, OWN)
    assert read_record(run) is None
    vouched(run, given=True)


# -- a second run, whose policy plays against that of the first


NETWORK = config(encoder="net_of_trust:Net")


@pytest.fixture
def rival(home, monkeypatch):
    """A run that was trained in another folder, which has the module of its network."""
    (home / "rival_work").mkdir()
    (home / "rival_work" / "net_of_trust.py").write_text("place = 'rival'\n")
    run = run_folder(home, "rival")
    monkeypatch.chdir(home / "rival_work")
    record_run(run, NETWORK)
    monkeypatch.chdir(home / "work")
    yield run
    sys.modules.pop("net_of_trust", None)


def test_vouched_opponent_finds_the_network_of_a_second_run_and_changes_nothing_for_the_first(home, rival):
    run = run_folder(home)
    record_run(run, OWN)
    (home / "work" / "mine_of_trust.py").write_text("class Env: place = 'work'\n")
    before = list(sys.path)
    with vouched_code(run, OWN, False, "eval"), vouched_opponent(rival, NETWORK, False, "eval"):
        assert code_folder() == home / "work"
        assert sys.path[-1] == str(home / "rival_work")
        assert importlib.import_module("net_of_trust").place == "rival"
    assert sys.path == before


def test_vouched_opponent_needs_no_trust_for_environments_but_for_the_network(home):
    stranger = run_folder(home, "stranger")
    with vouched_opponent(stranger, OWN, False, "sfactory eval runs/a --against"):
        pass
    with pytest.raises(CommandError, match=r"model\.encoder net_of_trust:Net") as error:
        vouched_opponent(stranger, NETWORK, False, "sfactory eval runs/a --against").__enter__()
    assert error.value.exit_code == 2
    assert f"sfactory eval runs/a --against {stranger} --trust" in str(error.value)


def test_vouched_opponent_that_the_user_trusts_has_its_network_in_the_current_folder(home, monkeypatch):
    run = run_folder(home)
    record_run(run, OWN)
    (home / "elsewhere").mkdir()
    (home / "elsewhere" / "net_of_trust.py").write_text("place = 'here'\n")
    monkeypatch.chdir(home / "elsewhere")
    with vouched_code(run, OWN, True, "eval"), vouched_opponent(run_folder(home, "x"), NETWORK, True, "eval"):
        assert importlib.import_module("net_of_trust").place == "here"
    del sys.modules["net_of_trust"]


def test_vouched_opponent_refuses_a_network_that_a_module_of_the_same_name_hides(home, rival):
    run = run_folder(home)
    record_run(run, NETWORK)
    (home / "work" / "net_of_trust.py").write_text("place = 'work'\n")
    sys.path.insert(0, str(home / "work"))
    with vouched_code(run, NETWORK, False, "eval"):
        with pytest.raises(CommandError, match=r"has a module net_of_trust, but .*work/net_of_trust\.py would be used"):
            vouched_opponent(rival, NETWORK, False, "eval").__enter__()


PICKLE = "cloudpickle:Mine-0123456789abcdef"


def test_modules_of_names_pickles_with_their_digest():
    found = modules_of(config(PICKLE, encoder=PICKLE, wrappers=PICKLE))
    assert list(found) == [PICKLE]
    assert list(modules_of(config(PICKLE), environments=False)) == []
    base = Config()
    own = modules_of(replace(base, model=replace(base.model, network="net:Both")), environments=False)
    assert own == {"net": "model.network net:Both"}


def test_vouched_code_refuses_a_pickle_that_this_user_did_not_train_with(home):
    run, settings = run_folder(home), config(PICKLE)
    (run / "code").mkdir()
    with pytest.raises(CommandError, match=f"names code that would be run: env.name {PICKLE}; this user has not"):
        vouched(run, settings)
    assert pickled.FOLDERS not in os.environ or str(run) not in os.environ[pickled.FOLDERS]
    with vouched_code(run, settings, True, "sfactory eval"):
        assert str(run / "code") in os.environ[pickled.FOLDERS]


def test_vouched_code_knows_a_pickle_by_its_digest(home):
    """The record names it; another pickle in the same run is another name."""
    run = run_folder(home)
    (run / "code").mkdir()
    record_run(run, config(PICKLE))
    with vouched_code(run, config(PICKLE), False, "sfactory eval"):
        assert str(run / "code") in os.environ[pickled.FOLDERS]
    with pytest.raises(CommandError, match="it was trained with other modules"):
        vouched(run, config(PICKLE.replace("0", "1")))


def test_vouched_code_accepts_what_this_process_has_pickled(home):
    name = pickled.name_of(lambda: home, "target")
    run = run_folder(home)
    with kept_code(run, config(name)), vouched_code(run, config(name), False, "sfactory eval"):
        assert pickled.load(name)() == home
    assert [path.name for path in (run / "code").iterdir()] == [pickled.file_name(name)]
