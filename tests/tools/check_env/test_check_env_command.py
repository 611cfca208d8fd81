"""The commands `sfactory check-env` and `sfactory envs FAMILY`."""

import json


def test_check_env_command_reports_findings_and_sets_the_exit_code(typed):
    code, out, line = typed("check-env", "memory/tmaze", "--seconds", "0.3")
    assert (code, "passed every check" in line) == (0, True)
    assert "ok    autoreset" in out
    assert out.splitlines()[-1].startswith("sfactory train memory/tmaze")
    assert "-> mlp" in out, "how the network reads the observations"
    assert "ok    network" in out
    code, out, line = typed("check-env", "faults/count", "--env.settings.nan_obs_at", "3", "--seconds", "0.3", "--json")
    assert (code, line) == (6, "sfactory: checks failed (exit 6): faults/count: data")
    assert [f for f in json.loads(out)["findings"] if f["level"] == "bad"]


def test_check_env_command_counts_warnings(typed):
    code, out, line = typed("check-env", "minatar/freeway", "--seconds", "0.2")
    warnings = sum(row.startswith("warn ") for row in out.splitlines())
    assert (code, warnings > 0) == (0, True)
    mark = "s" * (warnings > 1)
    assert line == f"sfactory: checked (exit 0): minatar/freeway passed every check, with {warnings} warning{mark}"


def test_check_env_command_tries_settings_of_training(typed):
    code, out, line = typed("check-env", "faults/clock", "--seconds", "0.2", "--model.encoder", "no_file:Net")
    assert (code, line) == (6, "sfactory: checks failed (exit 6): faults/clock: network")
    assert "No module named 'no_file'; its module cannot be imported" in " ".join(out.split())
    code, out, _ = typed(
        "check-env", "faults/clock", "--seconds", "0.2", "--model.hidden", "32", "16", "--optim.lr", 1e-4
    )
    assert code == 0
    assert " --model.hidden=32,16 --optim.lr=0.0001 " in out.splitlines()[-1]


def test_envs_command_lists_the_environments_of_a_family(typed):
    code, out, _ = typed("envs", "minatar")
    assert (code, "minatar/breakout" in out.splitlines(), len(out.splitlines())) == (0, True, 5)
    assert "gymnasium/Hopper-v5" in typed("envs", "gymnasium")[1].splitlines()
    code, _, line = typed("envs", "minatari")
    assert (code, "did you mean minatar?" in line) == (2, True)
