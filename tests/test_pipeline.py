"""Whole runs of a tiny model: what is left, what is made again, and that a run cut off ends with the same bits."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import yaml
from safetensors.numpy import load_file

from cpift.errors import CpiftError
from cpift.pipeline import _alone, run
from cpift.recipe import Recipe
from cpift.region import Region
from cpift.reporter import Reporter
from cpift.status import stage_states


class Cut(Exception):
    """A run that is cut off."""


class Listener(Reporter):
    """Remembers what was made, and cuts the run off where told to."""

    def __init__(self, cut: str = "") -> None:
        self.made: list[str] = []
        self.kept: list[str] = []
        self.said: list[str] = []
        self._cut = cut

    def stage(self, name: str, what: str) -> None:
        if self._cut and name.startswith(self._cut):
            raise Cut
        self.made.append(name)

    def skipped(self, name: str) -> None:
        self.kept.append(name)

    def message(self, text: str) -> None:
        self.said.append(text)

    def warning(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """A finished run of three tasks."""
    run(Recipe.parse(tiny.recipe(place)), place / "whole")
    return place / "whole"


def copy(whole: Path, to: Path) -> Path:
    shutil.copytree(whole, to, copy_function=shutil.copy2)
    return to


def stamps(out: Path) -> dict[str, int]:
    """When each stage was finished."""
    return {str(f.parent.relative_to(out / "stages")): f.stat().st_mtime_ns for f in out.glob("stages/**/stage.json")}


def final(out: Path) -> dict[str, np.ndarray]:
    return load_file(out / "model/model.safetensors")


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n].view(np.int32), b[n].view(np.int32)) for n in a)


def test_the_run_folder_is_as_documented(whole: Path) -> None:
    """Stages, resolved recipe, scores of every model, a model that loads, nothing half-made."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert {p.name for p in whole.iterdir() if not p.name.startswith(".")} >= {
        "recipe.yaml",
        "stages",
        "model",
        "scores.json",
        "log.jsonl",
    }
    assert Recipe.load(whole / "recipe.yaml").group.threshold == 0.9
    scores = json.loads((whole / "scores.json").read_text())
    assert list(scores["models"]) == [
        "base", "probe/reverse", "probe/upper", "probe/double", "backbone", "fused", "refine/1", "refine/2", "refine/3",
    ]  # fmt: skip
    assert all(len(s["items"]) == 6 for row in scores["models"].values() for s in row.values())
    assert scores["summary"]["probe/upper"]["below_specialist"] >= 0
    AutoModelForCausalLM.from_pretrained(whole / "model")
    assert AutoTokenizer.from_pretrained(whole / "model").chat_template
    card = (whole / "model/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    assert not list(whole.rglob("*.partial"))
    facts = json.loads((whole / "stages/01-probe/upper/stage.json").read_text())["facts"]
    assert {"seconds", "peak_memory", "seed", "versions", "losses", "tokens"} <= set(facts)


def test_the_cores_of_earlier_groups_are_frozen(whole: Path) -> None:
    """Bit-identical from the stage that is their last to move them; the rest moves."""
    found = json.loads((whole / "stages/03-group/groups.json").read_text())
    stages = [found["groups"][i] for i in found["order"]]
    weights = [load_file(whole / f"stages/06-refine/{k}/model.safetensors") for k in (1, 2, 3)]
    for k, members in enumerate(stages[:-1]):
        region = Region.load(whole / f"stages/02-identify/{members[0]}/region.safetensors")
        for name, positions in region.positions.items():
            first, last = weights[k][name].ravel().view(np.int32), weights[-1][name].ravel().view(np.int32)
            assert np.array_equal(first[positions], last[positions])
    assert not same(weights[1], weights[2])


def test_what_is_done_and_unchanged_is_not_done_again(whole: Path, place: Path, tmp_path: Path) -> None:
    """A second call makes nothing."""
    out, listener = copy(whole, tmp_path / "again"), Listener()
    before = stamps(out)
    run(Recipe.parse(tiny.recipe(place)), out, reporter=listener)
    assert listener.made == []
    assert stamps(out) == before
    assert same(final(out), final(whole))


def test_a_task_added_makes_only_what_depends_on_it(whole: Path, place: Path, tmp_path: Path) -> None:
    """Its rows, probe and region; groups and what follows; no probe, region or probe's score of the others."""
    out, listener = copy(whole, tmp_path / "more"), Listener()
    before = stamps(out)
    run(Recipe.parse(tiny.recipe(place, ("reverse", "upper", "double", "first"))), out, reporter=listener)
    after = stamps(out)
    kept = [
        s
        for s in before
        if s.startswith(("00-tasks", "01-probe", "02-identify", "07-evaluate/base", "07-evaluate/probe"))
    ]
    assert all(after[s] == before[s] for s in kept)
    assert {"00-tasks/first", "01-probe/first", "02-identify/first", "03-group"} <= set(listener.made)


def test_a_changed_setting_redoes_what_depends_on_it_and_says_so(whole: Path, place: Path, tmp_path: Path) -> None:
    """Refining for longer leaves everything before it."""
    out, listener = copy(whole, tmp_path / "changed"), Listener()
    recipe = Recipe.parse(tiny.recipe(place, refine={"examples_per_task": 4, "epochs": 2}))
    states = {s.name: s for s in stage_states(recipe, out)}
    assert states["06-refine/1"].state == "stale"
    assert "steps changed" in states["06-refine/1"].why
    assert states["05-fuse"].state == "done"
    run(recipe, out, reporter=listener)
    assert {name.split("/")[0] for name in listener.made} == {"06-refine", "07-evaluate"}
    assert any("06-refine/1 is done again: steps changed" in text for text in listener.said)
    assert not same(final(out), final(whole))


@pytest.mark.parametrize(
    "cut",
    [
        "00-tasks/upper",
        "01-probe/upper",
        "02-identify",
        "03-group",
        "04-backbone/2",
        "05-fuse",
        "06-refine/2",
        "07-evaluate/fused",
    ],
)
def test_cut_off_anywhere_it_ends_with_the_same_bits(whole: Path, place: Path, tmp_path: Path, cut: str) -> None:
    """Finished stages are not repeated."""
    recipe, first, second = Recipe.parse(tiny.recipe(place)), Listener(cut), Listener()
    with pytest.raises(Cut):
        run(recipe, tmp_path / "out", reporter=first)
    assert not (tmp_path / "out/model").exists()
    run(recipe, tmp_path / "out", reporter=second)
    assert not set(first.made) & set(second.made)
    assert same(final(tmp_path / "out"), final(whole))


def test_killed_in_the_middle_it_ends_with_the_same_bits(whole: Path, place: Path, tmp_path: Path) -> None:
    """SIGKILL of the process, in a training."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny.recipe(place), sort_keys=False))
    command = [sys.executable, "-m", "cpift.cli", "run", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "out/stages/04-backbone/.2.partial").exists():
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    listener = Listener()
    run(Recipe.parse(tiny.recipe(place)), tmp_path / "out", reporter=listener)
    assert not [name for name in listener.made if name.startswith(("00", "01", "02", "03"))]
    assert same(final(tmp_path / "out"), final(whole))


def test_a_damaged_file_is_found_before_it_is_used(whole: Path, place: Path, tmp_path: Path) -> None:
    """One flipped bit in a probe: the file, the stage, and what to do."""
    out = copy(whole, tmp_path / "damaged")
    shutil.rmtree(out / "stages/05-fuse")
    file = out / "stages/01-probe/upper/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        CpiftError, match=r"01-probe/upper/model.safetensors: was changed or damaged .*; remove .*01-probe/upper"
    ):
        run(Recipe.parse(tiny.recipe(place)), out)


def test_two_runs_in_one_folder(place: Path, tmp_path: Path) -> None:
    """The second is refused."""
    recipe = Recipe.parse(tiny.recipe(place))
    with _alone(tmp_path / "out"), pytest.raises(CpiftError, match="another cpift is at work"):
        run(recipe, tmp_path / "out")


@pytest.mark.parametrize(
    "changes",
    [
        {"group": {"threshold": 0.0}},
        {"backbone": {"from": "pretrained"}, "fuse": {"space": "updates"}},
        {"backbone": {"from": "multi_task"}, "group": {"order": [["double"], ["reverse", "upper"]]}},
        {
            "refine": {"examples_per_task": 99, "data": "mixed", "freeze": False},
            "region": {"percent": 1, "exclude": ["*embed*"]},
        },
    ],
    ids=["one group", "pretrained", "multi_task and given groups", "mixed, not frozen"],
)
def test_other_settings(place: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Each runs to the end; what is out of the ordinary is said."""
    listener = Listener()
    result = run(Recipe.parse(tiny.recipe(place, **changes)), tmp_path / "out", reporter=listener)
    if changes.get("group") == {"threshold": 0.0}:
        assert any("refining freezes nothing" in text for text in listener.said)
        assert [s for s in listener.made if s.startswith("04")] == ["04-backbone/1"]
    if "backbone" in changes and changes["backbone"]["from"] == "pretrained":
        assert "backbone" not in result["models"]
    if "order" in changes.get("group", {}):
        assert result["groups"] == [["double"], ["reverse", "upper"]]
    if "refine" in changes:
        assert any("16 training rows, fewer than examples_per_task 99" in text for text in listener.said)


def test_a_checkpoint_as_backbone_and_until(whole: Path, place: Path, tmp_path: Path) -> None:
    """--until stops after a stage, and goes on later."""
    recipe = Recipe.parse(tiny.recipe(place, backbone={"from": str(whole / "model")}))
    assert run(recipe, tmp_path / "out", until="identify") == {}
    assert {s.split("/")[0] for s in stamps(tmp_path / "out")} == {"00-tasks", "01-probe", "02-identify"}
    states = {s.name: s.state for s in stage_states(recipe, tmp_path / "out")}
    assert states["03-group"] == "missing"
    listener = Listener()
    run(recipe, tmp_path / "out", until="fuse", reporter=listener)
    assert listener.made == ["03-group", "05-fuse"]


def test_auto_steps_are_settled_once(place: Path, tmp_path: Path) -> None:
    """A task of another size, added later, gets the budget of the earlier ones."""
    data = tiny.recipe(place, ("reverse", "upper"), probe={"steps": "auto"})
    run(Recipe.parse(data), tmp_path / "out", until="probe")
    more = tiny.recipe(place, ("reverse", "upper", "double"), probe={"steps": "auto"})
    more["tasks"]["double"]["train"] = str(tiny.jsonl(tmp_path / "big.jsonl", tiny.rows("double", 60, 3)))
    listener = Listener()
    run(Recipe.parse(more), tmp_path / "out", until="probe", reporter=listener)
    assert [s for s in listener.made if s.startswith("01")] == ["01-probe/double"]
    assert any("stays at 4" in text for text in listener.said)
