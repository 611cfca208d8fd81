"""`sfactory presets`: recorded scores beside the presets."""

import pytest

from sfactory.config import scores
from sfactory.errors import SettingError

ENTRY = {
    "what": '"mean return in 100 episodes"', "score": "497.25", "low": "490.0", "high": "500.0", "seeds": "3",
    "steps": "150000", "seconds": "90.0", "machine": '"2 cores of Chip 9"', "busy": "false", "date": '"2026-12-01"',
}  # fmt: skip


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Write the file of scores: preset -> what differs from ENTRY."""

    def record(**entries):
        parts = [
            f'["{name}"]\n' + "".join(f"{key} = {value}\n" for key, value in {**ENTRY, **changed}.items())
            for name, changed in entries.items()
        ]
        (tmp_path / "scores.toml").write_text("\n".join(parts))

    monkeypatch.setattr(scores, "SCORES_FILE", str(tmp_path / "scores.toml"))
    return record


def row_of(out, name):
    return next(row for row in out.splitlines() if row.startswith(f"{name} "))


def test_presets_shows_score_steps_and_minutes_where_they_are_recorded(typed, recorded):
    recorded(**{"classic/cartpole": {}})
    code, out, _ = typed("presets")
    assert code == 0
    head = out.splitlines()[0]
    assert head.split() == ["preset", "environment", "score", "steps", "minutes", "description"]
    assert row_of(out, "classic/cartpole").split()[1:5] == ["gymnasium/CartPole-v1", "497.2", "150k", "1.5"]
    assert row_of(out, "classic/acrobot").split()[2:5] == ["-", "-", "-"]
    assert {line.find("CartPole: ") for line in out.splitlines() if "CartPole: " in line} == {head.find("description")}
    assert out.splitlines()[-2:] == [
        "score: mean return in 100 episodes of the last policy, over seeds",
        "minutes: of one run, on 2 cores of Chip 9, 2026-12-01",
    ]


def test_presets_names_the_presets_of_each_machine_and_marks_busy_ones(typed, recorded):
    other = {"machine": '"8 cores of Chip 1"', "busy": "true", "date": '"2026-11-30"', "seconds": "1500.0"}
    other |= {"what": '"score against random play in 500 episodes"', "score": "0.96"}
    recorded(**{"classic/cartpole": {}, "selfplay/connect_four": other, "my/gone": {}})
    out = typed("presets")[1]
    assert row_of(out, "selfplay/connect_four").split()[2:5] == ["0.96", "150k", "25*"]
    assert out.splitlines()[-5:] == [
        "score: mean return in 100 episodes of the last policy, over seeds: classic/cartpole",
        "score: score against random play in 500 episodes of the last policy, over seeds: selfplay/connect_four",
        "minutes: of one run, on 2 cores of Chip 9, 2026-12-01: classic/cartpole",
        "minutes: of one run, on 8 cores of Chip 1, 2026-11-30: selfplay/connect_four",
        "*: other programs used the processor too, so it took longer",
    ]


def test_presets_without_scores_says_so(typed, recorded):
    code, out, line = typed("presets")
    assert code == 0
    assert out.splitlines()[-1] == "No scores are recorded."
    assert "minutes" not in out
    assert line == ""
    recorded()  # a file without entries
    assert typed("presets")[1] == out


def names(out):
    return [row.partition(" ")[0] for row in out.partition("\n\n")[0].splitlines()[1:]]


def test_presets_with_a_word_lists_those_that_have_it(typed, recorded):
    recorded(**{"classic/cartpole": {}})
    assert names(typed("presets", "CartPole")[1]) == ["classic/cartpole"]
    assert names(typed("presets", "minatar/break")[1]) == ["minatar/breakout", "pqn/minatar/breakout"]
    assert names(typed("presets", "walker2d-v5")[1]) == ["mujoco/walker2d"]
    assert names(typed("presets", "vizdoom/")[1]) == ["vizdoom/basic"]
    assert names(typed("presets", "envpool/*")[1]) == ["envpool/*"]
    out = typed("presets", "acrobot")[1]
    assert row_of(out, "classic/acrobot").split()[2:5] == ["-", "-", "-"]
    assert out.splitlines()[-1] == "No scores of these are recorded."
    assert len(names(typed("presets")[1])) > 30


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("minatar/breakuot", "did you mean minatar/breakout?"),
        ("breakoot", "did you mean minatar/breakout?"),
        ("classic/cartpol3", "did you mean classic/cartpole?"),
        ("ALE/Qbert-v5", "write atari/qbert (settings of atari/*)"),
        ("chess", "without a word all are listed"),
    ],
)
def test_presets_with_an_unknown_word_says_what_there_is(typed, recorded, word, hint):
    recorded()
    assert typed("presets", word) == (
        2,
        "",
        f"sfactory: usage (exit 2): {word}: no preset has this in its name or environment; {hint}",
    )


def test_presets_takes_one_word(typed, recorded):
    assert typed("presets", "ant", "hopper")[0] == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('["classic/cartpole"]\nscore = 1.0\n', "Object missing required field `what`"),
        ('["classic/cartpole"\n', "Expected ']' at the end of a table declaration"),
        ("", "Expected `float`, got `str`"),
    ],
)
def test_presets_lists_presets_although_the_scores_cannot_be_read(typed, recorded, tmp_path, text, reason):
    recorded(**{"classic/cartpole": {"score": '"high"'}})
    if text:
        (tmp_path / "scores.toml").write_text(text)
    with pytest.raises(SettingError, match="the scores of presets cannot be read"):
        scores.read_scores()
    code, out, line = typed("presets")
    assert code == 0
    assert line.startswith(f"sfactory: note: {tmp_path}/scores.toml: the scores of presets cannot be read: {reason}")
    assert row_of(out, "classic/cartpole")
    assert out.splitlines()[-1] == "No scores are recorded."


def test_installed_scores_are_of_presets_that_exist():
    from sfactory.config.presets import family_defaults, presets

    names, families = {one.name for one in presets()}, {one.name for one in family_defaults()}
    others = {name for name in scores.read_scores() if name not in names}
    assert {f"{name.partition('/')[0]}/*" for name in others} <= families, "tasks with the settings of their family"
