"""Names that people bring along: short forms, environments, verbs, and where help is found."""

import inspect
import re
import tomllib
import warnings
from pathlib import Path

import pytest

from sfactory import api
from sfactory.cli import completion
from sfactory.cli import main as cli
from sfactory.cli.args import OldName
from sfactory.config import known_envs
from sfactory.config.flags import split_flags
from sfactory.errors import EnvError, SettingError, SettingNote
from sfactory.population.jobs import grid_cells
from sfactory.population.varied import parse_sample

SHORT = [
    ("--name", "first", "run", "dir", "runs/first"),
    ("--steps", "50k", "stop", "env_steps", 50_000),
    ("--seconds", "1.5", "stop", "seconds", 1.5),
    ("--lr", "5e-4", "optim", "lr", 5e-4),
    ("--seed", "7", "run", "seed", 7),
    ("--device", "cpu", "run", "device", "cpu"),
    ("--envs", "6k", "sampling", "envs_per_group", 6000),
    ("--samplers", "3", "sampling", "num_samplers", 3),
]


def printed(typed, *words):
    """The settings that `sfactory train classic/cartpole WORDS` would start with."""
    code, out, line = typed("train", "classic/cartpole", *words, "--print-config")
    assert code == 0, line
    return tomllib.loads(out)


# -- short forms


@pytest.mark.parametrize(("flag", "text", "section", "key", "value"), SHORT)
def test_a_short_form_is_its_long_form(typed, flag, text, section, key, value):
    plain = printed(typed)
    assert plain[section].get(key) != value
    long = "runs/first" if flag == "--name" else text
    for words in ((flag, text), (f"{flag}={text}",), (f"--{section}.{key.replace('_', '-')}", long)):
        expected = {**plain, section: {**plain[section], key: value}}
        assert printed(typed, *words) == expected


def test_the_last_one_counts_of_short_and_long_form(typed):
    assert printed(typed, "--lr", "1", "--optim.lr", "2")["optim"]["lr"] == 2
    assert printed(typed, "--optim.lr", "2", "--lr", "1")["optim"]["lr"] == 1
    assert printed(typed, "--lr", "1", "--lr", "3")["optim"]["lr"] == 3
    assert printed(typed, "--run.dir", "elsewhere", "--name", "a")["run"]["dir"] == "runs/a"
    assert printed(typed, "--name", "a", "--run.dir", "elsewhere")["run"]["dir"] == "elsewhere"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train classic/cartpole --lr fast", "optim.lr: 'fast' is not a number"),
        ("train classic/cartpole --steps", "steps: a value is missing"),
        ("train classic/cartpole --name a/b", "name: 'a/b' is not the name of a folder in runs/"),
        ("train classic/cartpole --name ..", "name: '..' is not the name of a folder in runs/"),
        ("train classic/cartpole --name=", "name: '' is not the name of a folder in runs/"),
        ("train classic/cartpole --step 3", "step: no such setting"),
        ("eval runs/a --lr 1", "optim.lr: eval plays with the settings of the run"),
        ("sweep classic/cartpole --seed 3", "run.seed: a sweep sets it itself; use --seeds"),
        ("sweep classic/cartpole --name a/b", "--dir/--name: 'a/b' is not the name of a folder in runs/"),
        ("sweep classic/cartpole --lr 1 --grid lr=1,2", "optim.lr is in the grid and also given as a flag"),
        ("sweep classic/cartpole --grid seed=1,2", "grid: run.seed cannot be in the grid; use --seeds"),
        ("pbt classic/cartpole --name a --seconds 3", "stop.seconds: a population sets it itself"),
        ("bench classic/cartpole --seconds 1", "--seconds: must be at least 2"),
    ],
)
def test_a_mistake_with_a_short_form_is_one_line(typed, words, message):
    code, out, line = typed(*words.split())
    assert (code, out) == (2, "")
    assert message.replace("--dir/--name", "--name") in line


def test_resume_takes_short_forms_and_refuses_what_the_long_forms_refuse(typed):
    Path("runs/a/checkpoints/000000001000").mkdir(parents=True)
    Path("runs/a/config.toml").write_text('[env]\nname = "gymnasium/CartPole-v1"\n')
    code, out, _ = typed("resume", "runs/a", "--steps", "20M", "--lr", "1e-4", "--print-config")
    assert code == 0
    assert tomllib.loads(out)["stop"]["env_steps"] == 20_000_000
    assert tomllib.loads(out)["optim"]["lr"] == 1e-4
    for words, name in ((("--seed", "7"), "run.seed"), (("--name", "b"), "run.dir")):
        code, _, line = typed("resume", "runs/a", *words)
        assert code == 4
        assert line.startswith(f"sfactory: resume refused (exit 4): {name} cannot change")


def test_sweep_and_pbt_name_their_folder_with_a_short_form():
    for command in ("sweep", "pbt"):
        assert cli.parse([command, "classic/cartpole", "--name", "mine"]).dir == Path("runs/mine")
        assert cli.parse([command, "classic/cartpole", "--dir", "runs/mine"]).dir == Path("runs/mine")
        settings = cli.parse([command, "classic/cartpole", "--lr", "1", "--envs", "4"]).settings
        assert {name: raw.value for name, raw in settings.items()} == {
            "optim.lr": "1", "sampling.envs_per_group": "4",
        }  # fmt: skip


def test_grid_and_sample_take_short_forms():
    assert grid_cells(["lr=1,2"]) == grid_cells(["optim.lr=1,2"])
    assert parse_sample(["lr=1e-4..1e-3"]) == parse_sample(["optim.lr=1e-4..1e-3"])
    with pytest.raises(SettingError, match=r"grid: optim\.lr is given twice"):
        grid_cells(["lr=1,2", "optim.lr=3,4"])


def test_an_option_of_a_command_comes_before_a_short_form():
    assert cli.parse(["bench", "classic/cartpole", "--seconds", "9"]).seconds == 9
    options = cli.parse(["verify-resume", "classic/cartpole", "--seed", "5", "--steps", "3"])
    assert (options.seed, options.steps, options.settings) == (5, 3, {})


@pytest.mark.parametrize(
    ("words", "now", "dest", "value"),
    [
        ("eval runs/a --video a.mp4 --video-games 2", "--video-episodes", "video_episodes", 2),
        ("eval runs/a --envs 3", "--num-envs", "num_envs", 3),
        ("export runs/a --out a.onnx", "--output", "output", Path("a.onnx")),
    ],
)
def test_an_old_name_of_an_option_works_with_a_note_and_is_offered_nowhere(words, now, dest, value, typed):
    command, *_, old, typed_value = words.split()
    with pytest.warns(SettingNote, match=f"^{old} is now {now} \\(the old name still works\\)$"):
        assert getattr(cli.parse(words.split()), dest) == value
    with warnings.catch_warnings(action="error"):
        assert getattr(cli.parse([*words.split()[:-2], now, typed_value]), dest) == value
    _, shown, _ = typed(command, "--help")
    assert now in shown
    assert f"{old} " not in shown
    offered = completion_words(completion.script("bash", cli.build_parser()), command)
    assert now in offered
    assert old not in offered
    _, _, line = typed(*words.split()[:-2], f"{old}s", typed_value)
    assert f"{old}?" not in line


def python_names():
    """Verb -> the arguments of its function in Python."""
    functions = {
        "eval": api.evaluate, "export": api.export, "compare": api.compare, "report": api.report, "resume": api.resume,
    }  # fmt: skip
    return {verb: set(inspect.signature(function).parameters) for verb, function in functions.items()}


@pytest.mark.parametrize("verb", python_names())
def test_options_of_a_command_have_the_names_of_its_python_function(verb):
    """Only one of them has words that Python has no use for, and sections, which the command reads as settings."""
    only_typed = {"word", "json", "config", "print_config", "quiet", "help_all", "against", "help"}
    only_python = {"run_dir", "sections", "callbacks", "check"}
    actions = completion.command_parsers(cli.build_parser())[verb]._actions
    options = {action.dest for action in actions if not isinstance(action, OldName)}
    assert options - only_typed == python_names()[verb] - only_python


def test_help_and_completion_have_every_short_form(typed):
    _, shown, _ = typed("train", "--help")
    _, every, _ = typed("train", "--help-all")
    script = completion.script("bash", cli.build_parser())
    for flag, _, section, key, _ in SHORT:
        assert re.search(rf"{flag} [A-Z]", shown), flag
        assert re.search(rf"^  {flag} [A-Z]+ +the same as --{section}\.{key.replace('_', '-')}", every, re.MULTILINE)
        assert flag in completion_words(script, "train") & completion_words(script, "resume")
    assert "--lr" not in completion_words(script, "eval")


def completion_words(script, command):
    """What bash completes for a command."""
    (line,) = re.findall(rf"^_shtab_sfactory_{command}_option_strings=\((.*)\)$", script, re.MULTILINE)
    return set(re.findall(r"--[\w.-]+", line))


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("lr=3", "did you mean --optim.lr 3?"),
        ("n_steps=128", "did you mean --sampling.rollout-length 128?"),
        ("optim.lrr=3", "did you mean --optim.lr 3?"),
        ("n_step=3", "settings are written --section.field value"),
    ],
)
def test_a_setting_without_dashes_is_answered_with_its_flag(typed, word, hint):
    _, _, line = typed("train", "classic/cartpole", word)
    assert line.endswith(hint)


# -- environments

ATARI_BREAKOUT = "write atari/breakout (settings of atari/*), or impala/atari/breakout (another algorithm or network);"
TARGETS = {
    "ALE/Breakout-v5": ATARI_BREAKOUT,
    "BreakoutNoFrameskip-v4": ATARI_BREAKOUT,
    "atari_breakout": ATARI_BREAKOUT,
    "breakout": "write minatar/breakout (tuned), or atari/breakout (settings of atari/*), "
    "or impala/atari/breakout or pqn/minatar/breakout (another algorithm or network);",
    "MinAtar/Breakout-v1": "write minatar/breakout (tuned), or pqn/minatar/breakout (another algorithm or network);",
    "Breakout-MinAtar": "write minatar/breakout (tuned), or pqn/minatar/breakout (another algorithm or network);",
    "PongNoFrameskip-v4": "write atari/pong (tuned);",
    "Pong-v5": "write atari/pong (tuned);",
    "pong": "write atari/pong (tuned);",
    "SpaceInvaders-v5": "write atari/space_invaders (settings of atari/*);",
    "CartPole-v1": "write classic/cartpole (tuned), or gymnasium/CartPole-v1 (settings of gymnasium/*);",
    "gym/CartPole-v0": "write classic/cartpole (tuned), or gymnasium/CartPole-v0 (settings of gymnasium/*);",
    "cartpole": "write classic/cartpole (tuned), or gymnasium/CartPole-v1 (settings of gymnasium/*);",
    "Hopper-v5": "write mujoco/hopper (tuned), or gymnasium/Hopper-v5 (settings of gymnasium/*);",
    "HalfCheetah-v4": "write mujoco/halfcheetah (tuned), or gymnasium/HalfCheetah-v4 (settings of gymnasium/*);",
    "HalfCheetah-v2": "write mujoco/halfcheetah (tuned), or gymnasium/HalfCheetah-v5 (settings of gymnasium/*);",
    "mujoco_ant": "write mujoco/ant (tuned), or gymnasium/Ant-v5 (settings of gymnasium/*);",
    "MountainCar-v0": "write gymnasium/MountainCar-v0 (settings of gymnasium/*);",
    "LunarLander-v2": "write gymnasium/LunarLander-v3 (settings of gymnasium/*);",
    "simple_spread_v3": "write pettingzoo/mpe/simple_spread (tuned);",
    "procgen-coinrun-v0": "write procgen/coinrun (tuned);",
    "procgen/starpilot": "write envpool/StarpilotHard-v0 (settings of envpool/*);",
    "doom_basic": "write vizdoom/basic (tuned; another task: health packs in place of a monster);",
    "vizdoom_basic": "write vizdoom/basic (tuned; another task: health packs in place of a monster);",
    "VizdoomBasic-v0": "write vizdoom/basic (tuned; another task: health packs in place of a monster);",
    "doom_health_gathering": "write envpool/HealthGathering-v1 (settings of envpool/*);",
    "atari_montezuma": "write atari/montezuma_revenge (settings of atari/*);",
    "mujoco_walker": "write mujoco/walker2d (tuned), or gymnasium/Walker2d-v5 (settings of gymnasium/*);",
    "Blackjack-v1": "write gymnasium/Blackjack-v1 (settings of gymnasium/*);",  # not the Atari game
    "brekout": "did you mean minatar/breakout?;",
    "MiniGrid-Empty-v0": "an id that a package registers with Gymnasium is gymnasium/PACKAGE:MiniGrid-Empty-v0;",
}


@pytest.mark.parametrize(("target", "answer"), TARGETS.items())
def test_a_foreign_environment_is_answered_with_what_exists(typed, target, answer):
    code, out, line = typed("train", target)
    assert (code, out) == (2, "")
    assert (
        line
        == f"sfactory: usage (exit 2): {target}: no such preset; {answer} see `sfactory presets` and `sfactory envs`"
    )


@pytest.mark.parametrize("target", [target for target in TARGETS if TARGETS[target].startswith("write")])
def test_every_word_of_an_answer_can_be_typed(typed, target):
    words = [word for word in re.findall(r"\b[a-z]+/[\w/-]+", TARGETS[target])]
    assert words
    for word in words:
        assert typed("train", word, "--print-config")[0] == 0


@pytest.mark.parametrize(
    "target", ["Foo-v0", "Breakout-ram-v5", "ALE/NoSuchGame-v5", "minatr/breakout", "sub/Hopper-v5"]
)
def test_a_name_that_nobody_knows_gets_no_suggestion_of_another_environment(typed, target):
    code, _, line = typed("train", target)
    assert code == 2
    assert "; write " not in line


@pytest.mark.parametrize("target", ["hopper_hop", "humanoid_run", "ocean/breakout", "doom_battle", "puffer_pong"])
def test_another_task_or_family_is_not_suggested_for_a_similar_name(typed, target):
    _, _, line = typed("train", target)
    assert line.endswith((f"{target}: no such preset; see `sfactory presets` and `sfactory envs`",
                          "no environment family ocean; see `sfactory presets` and `sfactory envs`"))  # fmt: skip


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("atari", "write atari/pong (tuned), or atari/ID (list: sfactory envs atari);"),
        ("ALE/", "write atari/pong (tuned), or atari/ID (list: sfactory envs atari);"),
        ("classic", "write classic/acrobot, classic/cartpole or classic/pendulum (tuned);"),
        ("classic_control", "write classic/acrobot, classic/cartpole or classic/pendulum (tuned);"),
        ("minatar", "write minatar/asterix, minatar/breakout, minatar/freeway, minatar/seaquest or "
         "minatar/space_invaders (tuned), or minatar/ID (list: sfactory envs minatar);"),
        ("vizdoom", "write vizdoom/basic (tuned);"),
        ("gym", "write gymnasium/ID (list: sfactory envs gymnasium);"),
        ("pqn", "write pqn/minatar/asterix, pqn/minatar/breakout,"),
    ],
)  # fmt: skip
def test_a_family_alone_is_answered_with_its_presets_and_the_list_of_its_ids(typed, word, answer):
    code, out, line = typed("train", word)
    assert (code, out) == (2, "")
    assert f"{word}: no such preset; {answer}" in line


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--env CartPole-v1", "; for CartPole-v1 write classic/cartpole (tuned), or gymnasium/CartPole-v1 (settings of "
         "gymnasium/*)"),
        ("--gym-id=PongNoFrameskip-v4", "; for PongNoFrameskip-v4 write atari/pong (tuned)"),
        ("--game pong", "; for pong write atari/pong (tuned)"),
        ("--env Foo", ""),
        ("--env --lr 1", ""),
    ],
)  # fmt: skip
def test_a_flag_that_names_the_environment_is_answered_with_the_target(typed, words, answer):
    code, _, line = typed("train", *words.split())
    assert code == 2
    assert line.endswith(
        f"here TARGET (the environment is the first word, as in sfactory train classic/cartpole){answer}"
    )


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--env CartPole-v1", "--env: no such command; did you mean sfactory train classic/cartpole?"),
        ("--algo ppo --env=HalfCheetah-v4", "--algo: no such command; did you mean sfactory train mujoco/halfcheetah?"),
        ("--env atari/pong --lr 1", "--env: no such command; did you mean sfactory train atari/pong?"),
        ("--env Foo", "--env: no such command; the command comes first,"),
        ("--env", "--env: no such command; the command comes first,"),
    ],
)
def test_a_command_line_without_a_command_is_answered_with_the_target_of_its_flag(typed, words, answer):
    code, _, line = typed(*words.split())
    assert code == 2
    assert line.startswith(f"sfactory: usage (exit 2): {answer}")


def test_an_id_that_a_module_registers_belongs_to_gymnasium(typed):
    _, _, line = typed("train", "ale_py:ALE/Pong-v5")
    assert "ale_py:ALE/Pong-v5: write atari/pong (tuned), or gymnasium/ale_py:ALE/Pong-v5;" in line
    for target, answer in {
        "gym:CartPole-v1": "write classic/cartpole (tuned), or gymnasium/CartPole-v1 (settings of gymnasium/*);",
        "gymnasium:Mine-v0": "write gymnasium/Mine-v0;",
        "gym:ALE/Pong-v5": "write atari/pong (tuned);",
        "procgen:procgen-coinrun-v0": "write procgen/coinrun (tuned);",
    }.items():
        assert f"{target}: {answer}" in typed("train", target)[2]
    _, _, line = typed("train", "my_file:Mine-v0")
    assert "my_file:Mine-v0: an id that a module registers; write gymnasium/my_file:Mine-v0;" in line
    assert typed("train", "my_file:Mine", "--print-config")[0] == 0


def test_one_of_several_foreign_names_is_answered(typed):
    _, _, line = typed("train", "atari/pong,Hopper-v5")
    assert "Hopper-v5 is not FAMILY/ID; write mujoco/hopper (tuned), or gymnasium/Hopper-v5" in line


def test_an_atari_name_is_answered_without_the_package(typed, monkeypatch):
    def missing(family):
        raise EnvError(f"{family} needs a package")

    monkeypatch.setattr("sfactory.envs.family_ids", missing)
    _, _, line = typed("train", "ALE/MontezumaRevenge-v5")
    assert "write atari/montezuma_revenge (settings of atari/*);" in line
    _, _, line = typed("train", "CartPole-v1")
    assert "write classic/cartpole (tuned);" in line


def test_ids_print_nothing_on_stdout(monkeypatch, capsys):
    monkeypatch.setattr("sfactory.envs.family_ids", lambda family: print("hello") or [family])
    assert known_envs._ids("minatar") == ["minatar"]
    assert capsys.readouterr().out == ""


# -- verbs


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (
            "serve",
            "serve: no such command; here sfactory export runs/NAME -o policy.onnx",
        ),
        ("enjoy", "enjoy: no such command; here sfactory eval runs/NAME --video out.mp4"),
        ("enjoy runs/a", "enjoy: no such command; here sfactory eval runs/a --video out.mp4"),
        ("play --name x", "play: no such command; here sfactory eval runs/NAME --video out.mp4"),
        ("test runs/a", "test: no such command; here sfactory eval runs/a"),
        ("test classic/cartpole", "test: no such command; here sfactory eval runs/NAME"),
        ("first.py", "first.py: no such command; did you mean sfactory train first.py:MyEnv,"),
        ("evaluate", "evaluate: no such command; here sfactory eval runs/NAME"),
        ("list", "list: no such command; here sfactory presets, or sfactory envs"),
        ("run classic/cartpole", "run: no such command; here sfactory train classic/cartpole"),
        ("benchmark", "benchmark: no such command; here sfactory bench TARGET"),
        ("continue runs/a", "continue: no such command; here sfactory resume runs/a"),
        ("monitor runs/a", "monitor: no such command; here sfactory watch runs/a"),
        ("plot runs/a", "plot: no such command; here sfactory compare runs/a -o plot.png, or sfactory report runs/a"),
        ("tune", "tune: no such command; here sfactory sweep TARGET --grid optim.lr=1e-4,1e-3"),
        ("help enjoy", "enjoy: no such command; here sfactory eval runs/NAME --video out.mp4"),
        ("help trian", "trian: no such command; did you mean train?"),
    ],
)
def test_a_verb_of_another_program_is_answered(typed, words, answer):
    code, out, line = typed(*words.split())
    assert (code, out) == (2, "")
    assert line.startswith(f"sfactory: usage (exit 2): {answer}")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("eval runs/a --n-eval-episodes 3", "--n-eval-episodes: no such option; here --episodes; see --help"),
        ("eval runs/a --deterministic", "--deterministic: no such option; here --greedy; see --help"),
        ("eval runs/a --eval_deterministic", "--eval_deterministic: no such option; here --greedy; see --help"),
        ("eval runs/a --render", "--render: no such option; here --video; see --help"),
        ("eval runs/a --sticky-actions", "--sticky-actions: no such option; eval plays with the settings of the run;"),
        ("eval runs/a --load_checkpoint_kind best", "--load_checkpoint_kind: no such option; here --checkpoint;"),
        ("eval runs/a --n-timesteps 3", "--n-timesteps: no such option; eval plays with the settings of the run;"),
    ],
)
def test_an_option_of_another_program_is_answered_with_that_of_the_command(typed, words, answer):
    code, out, line = typed(*words.split())
    assert (code, out) == (2, "")
    assert line.startswith(f"sfactory: usage (exit 2): {answer}")


def test_an_id_of_an_unknown_package_in_a_namespace_says_how_it_is_written(typed):
    _, _, line = typed("train", "dm_control/cheetah-run-v0")
    assert (
        "no environment family dm_control; an id that a package registers with Gymnasium is gymnasium/PACKAGE:" in line
    )


def test_every_answer_to_a_verb_is_a_command_that_parses():
    for verb, answer in cli.ELSEWHERE.items():
        assert verb not in cli.COMMANDS
        for command in answer.format(run="runs/a", target="classic/cartpole").split(", or "):
            program, *words = command.split()
            if program == "sfactory" and words != ["--version"]:
                assert cli.parse(words).run
            else:
                assert program in ("sfactory", "tensorboard")


# -- help


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_with_a_command_is_the_help_of_that_command(typed, command):
    assert typed("help", command) == typed(command, "--help")


def test_help_names_the_documentation(typed):
    for words in (("-h",), ("help",), ("train", "-h")):
        code, out, _ = typed(*words)
        assert code == 0
        assert "Documentation: docs/README.md" in out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command_names_the_pages_of_the_documentation_that_speak_of_it(typed, command):
    _, out, _ = typed(command, "-h")
    last = out.splitlines()[-1]
    assert last.startswith("Documentation: docs/")
    pages = re.findall(r"docs/[\w-]+\.md", last)
    texts = [(Path(__file__).parents[2] / page).read_text() for page in pages]
    if command != "train":  # its page is the first one, of which all others are reached
        assert f"sfactory {command}" in texts[0]


@pytest.mark.parametrize("words", [("--help-all", "classic/cartpole"), ("classic/cartpole", "--help-all")])
def test_help_all_with_a_target_shows_its_values(typed, words):
    code, out, _ = typed("train", *words)
    assert code == 0
    settings = printed(typed)
    assert settings["optim"]["lr"] != 1e-3  # the default without a preset
    assert default_of(out, "optim.lr") == str(settings["optim"]["lr"])
    assert default_of(out, "env.name") == "gymnasium/CartPole-v1"
    assert default_of(out, "batch.epochs") == str(settings["batch"]["epochs"])
    assert "Defaults are the values of classic/cartpole, with the files and flags of this command." in out


def default_of(text, name):
    """The default that help shows for a setting."""
    return re.search(rf"--{re.escape(name)} .*?\(default:\s+(.*?)\)", text, re.DOTALL)[1]


def test_help_all_shows_files_flags_and_settings_of_the_environment(typed):
    Path("my.toml").write_text("[trace]\ngamma = 0.5\n")
    words = ("atari/pong", "--config", "my.toml", "--lr", "0.25", "--env.settings.noop-max", "7")
    _, out, _ = typed("train", "--help-all", *words)
    assert default_of(out, "trace.gamma") == "0.5"
    assert default_of(out, "optim.lr") == "0.25"
    assert '"noop_max": 7' in default_of(out, "env.settings.KEY")


def test_help_all_without_a_target_shows_the_defaults_of_the_schema(typed):
    _, out, _ = typed("train", "--help-all")
    assert default_of(out, "optim.lr") == "0.001"
    assert "Defaults are the values of" not in out


def test_help_all_of_a_run_shows_its_settings(typed):
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/config.toml").write_text('[env]\nname = "gymnasium/CartPole-v1"\n[optim]\nlr = 0.125\n')
    code, out, _ = typed("resume", "runs/a", "--help-all")
    assert (code, default_of(out, "optim.lr")) == (0, "0.125")
    assert typed("resume", "--help-all")[0] == 0
    code, out, line = typed("train", "nosuch/thing", "--help-all")
    assert (code, out) == (2, "")
    assert "no environment family nosuch" in line


def test_split_flags_accepts_short_forms_between_others():
    layer, own, words = split_flags(["--lr", "1", "T", "--json", "--envs=4", "--batch.epochs", "2"], {"--json": False})
    assert {name: raw.value for name, raw in layer.items()} == {
        "optim.lr": "1", "sampling.envs_per_group": "4", "batch.epochs": "2",
    }  # fmt: skip
    assert (own, words) == (["--json"], ["T"])
