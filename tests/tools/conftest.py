"""Run folders made up, with numbers a person can check."""

import json
from pathlib import Path

import pytest

from sfactory.config import parsing, presets
from sfactory.config.toml_file import to_toml


@pytest.fixture
def fabricate(tmp_path):
    """fabricate("a1", [1.0, 2.0], **{"optim.lr": 1e-3}) writes tmp_path/runs/a1: a row per return, 1000 steps apart."""

    def make(name, returns=(), target="minatar/breakout", step=1000, speed=100.0, extra=None, **values):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        layer = {key: parsing.RawValue(value) for key, value in values.items()}
        config = parsing.build(*presets.target_layers(target), layer)
        (folder / "config.toml").write_text(to_toml(config))
        rows = []
        for i, value in enumerate(returns, start=1):
            row = {"env_steps": i * step, "seconds": i * step / speed}
            if isinstance(value, dict):
                row |= value
            elif value is not None:
                row["charts/episodic_return"] = value
            rows.append(row | (extra(i) if extra else {}))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        status = {"state": "finished", "exit": 0, "sentence": "stop.env-steps reached", "env_steps": len(rows) * step}
        (folder / "status.json").write_text(json.dumps(status))
        return folder

    (tmp_path / "runs").mkdir()
    return make


@pytest.fixture
def runs(tmp_path) -> Path:
    return tmp_path / "runs"
