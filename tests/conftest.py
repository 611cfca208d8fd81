"""What all tests share."""

import pytest

from sfactory.cli import main as cli


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """Types a command in an empty folder; returns (code, stdout, the last line on stderr)."""
    monkeypatch.chdir(tmp_path)

    def type_(*words):
        with pytest.raises(SystemExit) as left:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        return left.value.code, captured.out, lines[-1] if lines else ""

    return type_
