"""``cpift run`` in several processes: the same losses as in one, one writer, and a process that dies costs nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import preloaded
import pytest
import tiny
import tiny_run
import yaml
from launching import finish, process_of_rank, start
from tiny_run import same, stamps, weights

from cpift.method.region import Region

TRAINED = ["01-probe/reverse", "01-probe/upper", "04-backbone/1", "04-backbone/2", "06-refine/1", "06-refine/2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks; batches of 4 rows, of which 2 or 4 processes each take their share."""
    place = tmp_path_factory.mktemp("recipe")
    (place / "r.yaml").write_text(yaml.safe_dump(tiny.recipe(place, ("reverse", "upper")), sort_keys=False))
    return place / "r.yaml"


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    """The run of one process."""
    from cpift.runs.pipeline import run

    with tiny_run.one_thread():
        run(str(recipe), recipe.parent / "alone")
    return recipe.parent / "alone"


def facts(out: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "stages" / stage / "stage.json").read_text())
    return found


def losses(out: Path, stage: str) -> np.ndarray:
    return np.array([loss for _, loss, _ in facts(out, stage)["facts"]["losses"]])


def assert_same_curves(out: Path, alone: Path, stages: list[str]) -> None:
    for stage in stages:
        assert len(losses(out, stage)) == facts(out, stage)["facts"]["steps"]
        assert np.allclose(losses(out, stage), losses(alone, stage), atol=2e-4), stage
        assert facts(out, stage)["settings"] == facts(alone, stage)["settings"]
        for counted in ("steps", "tokens", "trained_tokens", "rows"):
            assert facts(out, stage)["facts"][counted] == facts(alone, stage)["facts"][counted], (stage, counted)


def test_a_whole_run_of_two(recipe: Path, alone: Path, tmp_path: Path) -> None:
    """The losses and counts of one process; frozen elements keep every bit; one process can go on with it."""
    out = tmp_path / "out"
    # What accelerate launch sets beside torchrun's variables.
    environment = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "no"}
    codes, said = preloaded.run_ranks(2, ["run", str(recipe), "--out", str(out)], tmp_path / "said", **environment)
    assert codes == [0, 0], said[-3000:]
    first, second = (Path(f"{tmp_path / 'said'}.{rank}").read_text() for rank in (0, 1))
    assert "01-probe/reverse" in first
    assert "01-probe/reverse" not in second, "the second process is silent"
    assert_same_curves(out, alone, TRAINED)
    for name in (
        "07-evaluate/base/reverse/score.json",
        "07-evaluate/base/upper/score.json",
    ):
        assert (out / "stages" / name).read_bytes() == (alone / "stages" / name).read_bytes(), "of the same model"
    region = Region.load(out / "stages/02-identify/reverse/region.safetensors")
    first = json.loads((out / "stages/03-group/groups.json").read_text())
    earlier = first["groups"][first["order"][0]][0]
    region = Region.load(out / f"stages/02-identify/{earlier}/region.safetensors")
    before, after = weights(out / "stages/06-refine/1"), weights(out / "stages/06-refine/2")
    for name, positions in region.positions.items():
        assert np.array_equal(before[name][positions], after[name][positions]), name
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    assert facts(out, "06-refine/2")["facts"]["frozen"] == region.count
    listener = tiny_run.Listener()
    from cpift.runs.pipeline import run

    run(str(recipe), out, reporter=listener)
    assert listener.made == []


@pytest.mark.long  # its variables are in the test above, torchrun itself in the test of a process that dies
def test_probes_by_accelerate_launch(recipe: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, _, errors = finish(start(2, "run", recipe, "--out", out, "--until", "probe", launcher="accelerate"))
    assert code == 0, errors[-3000:]
    assert_same_curves(out, alone, TRAINED[:2])


@pytest.mark.long
def test_probes_of_four(recipe: Path, alone: Path, tmp_path: Path) -> None:
    """Each process has one row of a step."""
    arguments = ["run", str(recipe), "--out", str(tmp_path / "out"), "--until", "probe"]
    codes, said = preloaded.run_ranks(4, arguments, tmp_path / "said")
    assert codes == [0] * 4, said
    assert_same_curves(tmp_path / "out", alone, TRAINED[:2])


def test_a_process_that_dies(recipe: Path, alone: Path, tmp_path: Path) -> None:
    """All stop, nothing half-made looks finished; started again, what was finished is not made again."""
    out = tmp_path / "out"
    process = start(2, "run", recipe, "--out", out)
    victim = None
    while process.poll() is None and not (out / "stages/04-backbone/.1.partial").exists():
        victim = victim or process_of_rank(process.pid, 1)
        time.sleep(0.01)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    code, _, _ = finish(process)
    assert code != 0
    before = stamps(out)
    assert "01-probe/upper" in before
    assert tiny_run.whole_stages_only(out)
    assert not (out / "model").exists()
    codes, said = preloaded.run_ranks(2, ["run", str(recipe), "--out", str(out)], tmp_path / "said")
    assert codes == [0, 0], said
    assert {s: stamps(out)[s] for s in before} == before
    assert set(stamps(out)) == set(stamps(alone))
    assert same(out / "model", out / "stages/06-refine/2")
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize(
    ("processes", "environment", "words"),
    [
        (3, {}, "4 rows a step cannot be shared by 3 processes"),
        (2, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "use FSDP2"),
        (2, {"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
    ],
    ids=["rows", "FSDP1", "DeepSpeed"],
)
def test_what_is_refused(recipe: Path, tmp_path: Path, processes: int, environment: dict[str, str], words: str) -> None:
    """One line, by one of the processes; nothing is written."""
    arguments = ["run", str(recipe), "--out", str(tmp_path / "out")]
    codes, said = preloaded.run_ranks(processes, arguments, tmp_path / "said", **environment)
    assert any(codes), codes
    lines = [line for line in said.splitlines() if line.startswith("cpift: ")]
    assert len(lines) == 1, said
    assert words in lines[0]
    assert not (tmp_path / "out").exists()
