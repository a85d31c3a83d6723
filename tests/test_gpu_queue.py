"""The queue's scripts for speed, the table and arrivals: sizes from the time, tables from what is done, time limits.

Their whole runs at the tiny size are marked long.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from cpift.method.region import Region
from cpift.recipe.recipe import Recipe

ROOT = Path(__file__).parents[1]
GPU = ROOT / "benchmarks" / "gpu"
sys.path.insert(0, str(GPU))
sys.path.insert(0, str(GPU.parent))

import adapter_regions  # noqa: E402
import arrivals  # noqa: E402
import compare_methods  # noqa: E402
import first_contact  # noqa: E402
import five_sets  # noqa: E402
import frozen_training  # noqa: E402
import lab_experiments  # noqa: E402
import shared_card  # noqa: E402
import speed  # noqa: E402
import table  # noqa: E402
from agreement import agreement  # noqa: E402
from inputs import set_names, small_copy  # noqa: E402
from record import Record  # noqa: E402
from step import Skip, Step  # noqa: E402
from test_gpu_scripts import call_here  # noqa: E402

SCRIPTS = (speed, table, arrivals)


def step_of(folder: Path, **more: Any) -> Step:
    return Step(Record(folder / "step.json"), 60.0, folder / "scratch", results=folder, **more)


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Three sets of 16 and 6 rows, one of them without plain answers."""
    for name in ("zebra", "plain", "also"):
        kind = {"zebra": "reverse", "plain": "upper", "also": "double"}[name]
        for part, count in (("train", 16), ("eval", 6)):
            rows = tiny.rows(kind, count, len(part))
            if name == "also":
                rows = [{"messages": row["messages"]} for row in rows]
            tiny.jsonl(tmp_path / "data" / name / f"{part}.jsonl", rows)
    return tmp_path / "data"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_each_script_has_steps_that_are_there(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert all((GPU / plan.script).is_file() for plan in script.STEPS)
    names = [plan.name for plan in script.STEPS]
    assert first_contact.parse(["--steps", names[-1]], names).steps == [names[-1]]
    with pytest.raises(SystemExit):
        first_contact.parse(["--sets", "alone"], names)
    assert "--sets: give two sets or more" in capsys.readouterr().err


def test_sets_whose_rows_are_scored_as_they_stand_come_first(sets: Path, tmp_path: Path) -> None:
    assert set_names(step_of(tmp_path, data=sets), 5) == ["plain", "zebra", "also"]
    assert set_names(step_of(tmp_path, data=sets)) == ["plain", "zebra"]
    assert set_names(step_of(tmp_path, data=sets, sets=["also", "zebra"]), 5) == ["also", "zebra"]
    with pytest.raises(Skip, match="needs --data"):
        set_names(step_of(tmp_path), 5)


MEASURED = {
    "train_overhead_seconds": 1.0, "finish_seconds": 1.0, "load_seconds": 2.0, "guard_seconds": 1.0,
    "start_seconds": 3.0, "prepare_seconds": 1.0,
}  # fmt: skip
PLANNED = {
    "seconds": 236.0,
    "evaluated_models": 4,
    "evaluate_seconds": 40.0,
    "measured": MEASURED,
    "stages": [
        {"stage": "probe", "stages": 5, "steps": 100, "seconds": 60.0},
        {"stage": "refine", "stages": 5, "steps": 100, "seconds": 60.0},
        {"stage": "fuse", "stages": 1, "seconds": 6.0},
    ],
}


def test_the_rows_of_a_run_follow_from_the_time() -> None:
    """By hand: 10 trainings of 2 s apart from their steps, 6 s of fusion, 4 models of 3 s, 4 s to start: 42 s fixed."""
    assert five_sets.fixed_seconds(PLANNED) == 42.0
    assert five_sets.share_that_fits(PLANNED, 42 + 194 / 2) == pytest.approx(0.5)
    assert five_sets.share_that_fits(PLANNED, 1000) == 1
    assert five_sets.share_that_fits(PLANNED, 10) == 0


def test_the_rows_of_a_table_follow_from_the_time() -> None:
    """By hand: three seeds one by one have 160 s each: 2 × 20 s fixed, 3 × 10 s to score, 90 of 2 × 100 s to train."""
    assert compare_methods.rows_that_fit(PLANNED, 2000, 2.0, 3, 3, 1, 480) == 900
    assert compare_methods.rows_that_fit(PLANNED, 2000, 2.0, 3, 3, 5, 480) == 2000  # three times as much a second
    assert compare_methods.rows_that_fit(PLANNED, 2000, 2.0, 3, 3, 1, 10) == compare_methods.FEWEST


def test_what_a_table_costs() -> None:
    """In runs of cpi_ft: itself, each other form and baseline, and one set of probes for all merges together."""
    assert compare_methods.cost_of("table", compare_methods.methods_of("table", merges=False)) == 6
    assert compare_methods.cost_of("table", compare_methods.methods_of("table", merges=True)) == 7
    assert compare_methods.cost_of("stitching", compare_methods.methods_of("stitching", merges=True)) == 0.5


def test_steps_that_are_timed_fit_their_slot() -> None:
    assert frozen_training.timed_steps(12.0, 2.0, 0.5) == 18  # 20 steps of 0.5 s, two of them to warm up
    assert frozen_training.timed_steps(1.0, 2.0, 0.5) == frozen_training.FEWEST
    assert frozen_training.timed_steps(1e6, 2.0, 0.5) == frozen_training.MOST


def test_a_random_region_holds_its_share(tmp_path: Path) -> None:
    region = frozen_training.random_region(tiny.base(tmp_path / "base"), 30)
    assert region.count / region.total == pytest.approx(0.3, abs=0.01)


def test_the_recipe_takes_every_method(sets: Path, tmp_path: Path) -> None:
    """Each method's settings are keys of a recipe; sets without plain answers are scored by their loss."""
    from cpift.compare.jobs import jobs_of, overrides_of

    step = step_of(tmp_path, data=sets, tiny=True, given_model=tiny.base(tmp_path / "base"))
    names = set_names(step, 5)
    recipe = Recipe.parse(compare_methods.recipe_of(step, tmp_path, names, 8, 4))
    assert [recipe.tasks[name].metric for name in names] == [None, None, "loss"]
    assert len((tmp_path / "plain.train.jsonl").read_text().splitlines()) == 8
    for what, budget in (("table", "equal_tokens"), ("stitching", "paper"), ("arrivals", "incremental")):
        methods = compare_methods.methods_of(what, merges=True)
        assert len(jobs_of(methods, [0], [budget])) == len(methods)
        for method in methods:
            recipe.changed(overrides_of(method))


def finished(folder: Path, seeds: int) -> shared_card.Comparison:
    """A comparison of two methods on one task with three seeds, of which some are done: hand-made outcomes."""
    from cpift.compare.jobs import Job
    from cpift.compare.record import key_of, write_result
    from cpift.recipe.recipe import Recipe

    folder.mkdir()
    recipe = Recipe.parse(tiny.recipe(folder / "rows", tasks=("reverse",)))
    (folder / "recipe.yaml").write_text(recipe.dump())
    methods = ("cpi_ft", "multi_task")
    for seed in range(seeds):
        for method, items in (("cpi_ft", [1, 1, 1, 0]), ("multi_task", [1, 0, seed % 2, 0])):
            job = Job("equal_tokens", method, seed)
            score = {"metric": "exact_match", "score": sum(items) / 4, "items": items}
            result: Any = {"scores": {"reverse": score}, "tokens": 1000, "seconds": 1.0, "key": key_of(recipe, job)}
            write_result(folder, job, result)
    return shared_card.Comparison(folder / "recipe.yaml", folder, methods, (0, 1, 2), "equal_tokens", "cpi_ft")


def test_a_comparison_that_is_cut_off_keeps_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three seeds are done when the time is up: means by hand, what is missing, the package's own page."""
    comparison, step = finished(tmp_path / "table", 2), step_of(tmp_path)
    step.record.add("rows of each set", 16)
    monkeypatch.setattr(
        shared_card.Comparison, "command", lambda self: [sys.executable, "-c", "import time; time.sleep(60)"]
    )
    shared_card.watch(step, comparison, 0.5)
    data = json.loads((tmp_path / "step.json").read_text())["measures"]
    assert [m["what"] for m in data] == ["rows of each set", "cpi_ft", "multi_task", "the other seeds and methods"]
    assert [m["value"] for m in data[1:3]] == [75.0, 37.5]  # 3 of 4; the mean of 1 and 2 of 4
    assert "2 of 3 seeds" in data[1]["note"]
    assert "1,000 tokens" in data[1]["note"]
    assert "| `multi_task` |" in (tmp_path / "table" / "table.md").read_text()


def test_a_comparison_that_fails_keeps_its_table_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison, step = finished(tmp_path / "table", 1), step_of(tmp_path)
    monkeypatch.setattr(shared_card.Comparison, "command", lambda self: [sys.executable, "-c", "raise SystemExit(2)"])
    with pytest.raises(RuntimeError, match="exit code 2"):
        shared_card.watch(step, comparison, 30)
    assert [measure.what for measure in step.record.measures] == ["cpi_ft", "multi_task"]


def test_experiments_side_by_side_are_ended_when_the_time_is_up() -> None:
    sleep, fail = "import time; time.sleep(60)", "raise SystemExit(3)"
    commands = {name: [sys.executable, "-c", text] for name, text in (("long", sleep), ("bad", fail), ("good", ""))}
    assert lab_experiments.side_by_side(commands, 3) == {"long": None, "bad": 3, "good": 0}


def test_accuracies_of_the_laboratory_are_those_after_the_last_arrival() -> None:
    """By hand: units with 2 and 1 of 2 right of one skill, and all of the other; tuning is left out."""
    from lab.outcomes import packed

    def cell(experiment: str, first: list[int]) -> dict[str, Any]:
        late = {"a": packed(np.array(first, np.bool_)), "b": packed(np.array([1, 1], np.bool_))}
        return {"experiment": experiment, "label": "plain", "stages": [{"right": {}}, {"right": late}]}

    cells = [cell("e2-0", [1, 1]), cell("e2-0", [0, 1]), cell("e2-0-tuning", [0, 0])]
    assert lab_experiments.accuracies([*cells, {"outcomes": {}}]) == {"e2-0, plain": (87.5, "± 18 over 2 units")}


def test_agreement_of_regions_beside_chance_by_module() -> None:
    """By hand: 1 common position of 3 and 3 among 40; of q_proj 1 of 2 and 3 among 20; embeddings in one region alone."""
    sizes = {"a.q_proj.weight": 10, "b.q_proj.weight": 10, "embed.weight": 20}
    first = Region({"a.q_proj.weight": np.array([0, 1]), "embed.weight": np.array([0])}, 40)
    second = Region({"a.q_proj.weight": np.array([1, 2]), "b.q_proj.weight": np.array([0])}, 40)
    parts = agreement(first, second, sizes)
    assert set(parts) == {"all", "q_proj"}
    assert (parts["all"].jaccard, parts["all"].chance) == pytest.approx((1 / 5, 0.225 / (6 - 0.225)))
    assert (parts["q_proj"].jaccard, parts["q_proj"].chance) == pytest.approx((1 / 4, 0.3 / (5 - 0.3)))


def test_the_table_of_adapters_regions() -> None:
    """Medians and ranges, one column a pair; a pair without this kind has none."""
    pair = {"task": "t", "seed": 0, "chance": 0.005}
    lines = [{**pair, "pair": "r", "of": "all", "jaccard": value} for value in (0.1, 0.3, 0.2)]
    text = adapter_regions.table([*lines, {**pair, "pair": "full", "of": "q", "jaccard": 0.5}])
    assert "| all | 0.200 (0.100–0.300; n = 3) | – | 0.005 |" in text
    assert "| q | – | 0.500 (0.500–0.500; n = 1) | 0.005 |" in text


def test_a_tiny_call_takes_a_small_model_of_the_given_ones_architecture(tmp_path: Path) -> None:
    """Two narrow layers with other weights, the tokenizer and what else the configuration has; once for all steps."""
    given = tiny.base(tmp_path / "given", hidden_size=128, num_hidden_layers=3, intermediate_size=64)
    step = step_of(tmp_path, tiny=True, given_model=given)
    small = small_copy(step)
    whole, made = (json.loads((folder / "config.json").read_text()) for folder in (given, small))
    differing = {key for key in whole if whole[key] != made[key]}
    assert differing == {"hidden_size", "num_hidden_layers", "head_dim"}
    assert (made["hidden_size"], made["num_hidden_layers"], made["head_dim"]) == (64, 2, 16)
    assert (small / "tokenizer.json").read_text() == (given / "tokenizer.json").read_text()
    stamp = (small / "model.safetensors").stat().st_mtime_ns
    assert small_copy(step) == small
    assert (small / "model.safetensors").stat().st_mtime_ns == stamp


def test_speed_at_the_tiny_size_in_short(sets: Path, tmp_path: Path) -> None:
    """Two of its steps in this process; the model that is given is too wide for the time."""
    given = ("--model", tiny.base(tmp_path / "base"), "--data", sets, "--out", tmp_path / "out", "--budget", 600)
    code, printed = call_here(GPU / "speed.py", "--steps", "machine", "frozen", *given)
    assert code == 0, printed
    data = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert [step["state"] for step in data["steps"]] == ["done", "done"]
    assert {"0 % frozen", "1 % frozen", "30 % frozen"} <= {m["what"] for m in data["steps"][1]["measures"]}


def call(script: str, folder: Path, *arguments: Any) -> dict[str, dict[str, Any]]:
    """A script at its tiny size; its steps by name, each of which is done."""
    command = [sys.executable, str(GPU / f"{script}.py"), "--tiny", "--budget", "3000", "--out", str(folder)]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads((folder / f"{script}.json").read_text())["steps"]
    assert {step["state"] for step in steps} == {"done"}
    return {step["name"]: {m["what"]: m["value"] for m in step["measures"]} for step in steps}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_speed_at_the_tiny_size(sets: Path, tmp_path: Path) -> None:
    given = ("--model", tiny.base(tmp_path / "base"), "--data", sets)
    steps = call("speed", tmp_path / "out", *given)
    assert list(steps) == [plan.name for plan in speed.STEPS]
    assert {"0 % frozen", "1 % frozen", "30 % frozen"} <= set(steps["frozen"])
    assert steps["run"]["rows of each set"] == 16
    assert steps["run"]["run: predicted time"] > 0
    assert {"stage 01-probe", "stage 02-identify", "stage 05-fuse", "whole run"} <= set(steps["run"])


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_table_at_the_tiny_size(sets: Path, tmp_path: Path) -> None:
    """Also that a second call resumes, and that no weights stay."""
    given = ("--model", tiny.base(tmp_path / "base"), "--data", sets)
    steps = call("table", tmp_path / "out", *given)
    assert list(steps) == [plan.name for plan in table.STEPS]
    assert steps["stitching"]["multi_task"] is not None
    first = steps["table"]
    assert first["multi_task"] is not None
    kept = tmp_path / "out" / "table"
    assert (kept / "comparison.json").is_file()
    assert not list(kept.glob("**/*.safetensors"))
    stamps = {file: file.stat().st_mtime_ns for file in kept.glob("results/**/*.json")}
    assert len(stamps) == 2
    again = call("table", tmp_path / "out", *given, "--steps", "table")["table"]
    assert again["multi_task"] == first["multi_task"]
    assert {file: file.stat().st_mtime_ns for file in kept.glob("results/**/*.json")} == stamps


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_arrivals_at_the_tiny_size(tmp_path: Path) -> None:
    steps = call("arrivals", tmp_path)
    assert list(steps) == [plan.name for plan in arrivals.STEPS]
    assert steps["lab"]["e2: cells"] > 0
    assert not (tmp_path / "lab" / "models").exists()
    assert steps["arrivals"]["sequential_replay"] is not None
    assert (tmp_path / "arrivals" / "table.md").is_file()
