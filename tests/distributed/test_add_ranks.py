"""``cpift add`` in two processes: the losses and counts of one, protected bits, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import preloaded
import pytest
import tiny
import tiny_add
import tiny_run
import torch
from tiny_run import call


def facts(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "stages/04-arrive/1/train/stage.json").read_text())
    return found


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of an addition with a kept task and a region by its rows."""
    place = tiny_add.models(tmp_path_factory.mktemp("add-of-two"))
    rows = {task: tiny.jsonl(place / f"{task}.jsonl", tiny.rows(task, 20, 0)) for task in ("upper", "reverse")}
    sets = {**{f"training.{k}": v for k, v in tiny_add.TRAINING.items()}, "protect.by": "fisher", "protect.percent": 5}
    given = ["--model", place / "mine", "--task", f"upper={rows['upper']}", "--keep", rows["reverse"]]
    return [*map(str, given), *(part for key, value in sets.items() for part in ("--set", f"{key}={value}"))]


@pytest.mark.long  # of a run: test_run.py
@pytest.mark.parametrize("ewc", [0, 30])
def test_an_addition_by_two_processes(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], ewc: int
) -> None:
    alone, out = tmp_path / "alone", tmp_path / "out"
    options = [*options, "--set", f"protect.ewc={ewc}"]
    with tiny_run.one_thread():
        assert call(capsys, "add", *options, "--out", alone)[0] == 0
    codes, said = preloaded.run_ranks(2, ["add", *options, "--out", str(out)], tmp_path / "said")
    assert codes == [0, 0], said
    assert "Traceback" not in said
    assert said.count("New: upper") == 1
    one, two = facts(alone), facts(out)
    assert one["settings"] == two["settings"]
    assert all(one["facts"][name] == two["facts"][name] for name in ("steps", "tokens", "trained_tokens", "rows"))
    losses = [np.array([loss for _, loss, _ in made["facts"]["losses"]]) for made in (one, two)]
    assert np.allclose(*losses, atol=2e-4)
    penalties = [made["facts"]["penalty"] for made in (one, two)]
    assert penalties == ([pytest.approx(penalties[0], rel=1e-3)] * 2 if ewc else [None, None])
    region = [(folder / "stages/03-protect/region.safetensors").read_bytes() for folder in (alone, out)]
    assert region[0] == region[1]
    before, after = tiny_add.values(Path(options[1])), tiny_add.values(out / "model")
    for name, positions in tiny_add.region(out / "stages/03-protect").items():
        at = torch.from_numpy(positions.astype(np.int64))
        assert torch.equal(before[name][at].view(torch.int16), after[name][at].view(torch.int16)), name


def test_other_ways_are_refused_in_one_of_two_processes(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    code, _, errors = call(capsys, "add", *options, "--out", tmp_path / "out", "--compare")
    assert code == 2
    assert errors.startswith("cpift: --compare: trains several models")
    assert not (tmp_path / "out").exists()


@pytest.mark.long  # of one process: above
def test_other_ways_by_two_processes_are_refused_before_anything_is_made(options: list[str], tmp_path: Path) -> None:
    arguments = ["add", *options, "--out", str(tmp_path / "out"), "--compare"]
    codes, said = preloaded.run_ranks(2, arguments, tmp_path / "said")
    assert any(codes), codes
    lines = [line for line in said.splitlines() if line.startswith("cpift: ")]
    assert len(lines) == 1, said
    assert "--compare: trains several models" in lines[0]
    assert not (tmp_path / "out").exists()
