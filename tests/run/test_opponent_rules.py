"""Code that the settings of an opponent name."""

import pytest

import sfactory
from sfactory.errors import CommandError, Exit
from sfactory.run.opponent_rules import opponent_code


def test_opponent_code_of_a_stranger_is_refused(tmp_path):
    config = sfactory.make_config("envpool/TicTacToe-v1", model={"encoder": "strange_module:Net"})
    with pytest.raises(CommandError, match=r"selfplay.opponents: .*strange_module:Net; this user has not") as caught:
        with opponent_code(tmp_path, config):
            raise AssertionError("the code would be imported")
    assert caught.value.exit_code == Exit.USAGE
    assert "--trust" not in str(caught.value), "no option of train allows it"


def test_opponent_code_passes_on_errors_of_what_is_done_with_it(tmp_path):
    config = sfactory.make_config("envpool/TicTacToe-v1")
    with pytest.raises(CommandError, match="of the body"), opponent_code(tmp_path, config):
        raise CommandError(Exit.USAGE, "of the body")
