"""The comparison lab: shared work, equal tokens, resume, statistics that agree with scipy's."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy.stats import ttest_rel
from tiny_run import Listener, call, one_thread, same

from cpift.compare import compare
from cpift.compare.jobs import Job, overrides_of
from cpift.compare.merging import VARIABLE
from cpift.compare.methods import METHODS as TABLE
from cpift.compare.methods import is_form_of
from cpift.compare.methods.multi_stage import in_stages
from cpift.compare.statistics import difference, forgetting, summary
from cpift.compare.table import markdown
from cpift.errors import CpiftError
from cpift.method.region import Region
from cpift.recipe.recipe import Recipe

# What mergekit does with biases that its table of an architecture does not list.
DROPS = """
import sys
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
given = load_file(yaml.safe_load(open(sys.argv[1]))["models"][0]["model"] + "/model.safetensors")
save_file({name: value for name, value in given.items() if not name.endswith(".bias")}, sys.argv[2] + "/model.safetensors")
"""

METHODS = [
    "sequential", "sequential_replay", "base", "single_task", "multi_task", "multi_stage_random", "multi_stage_heuristic", "multi_stage_replay", "cpi_ft",
    "cpi_ft:probe.steps=3,backbone.from=multi_task,backbone.epochs=3,refine.data=mixed", "cpi_ft_random_region", "cpi_ft_no_freeze", "cpi_ft_no_transplant",
    "cpi_ft_no_refine", "bias_only", "cpi_ft_sequential",
]  # fmt: skip
# Without those that differ from another by one setting of the recipe.
SHORT = [m for m in METHODS if m not in {
    "multi_stage_random", "multi_stage_heuristic", "cpi_ft_random_region", "cpi_ft_no_freeze", "cpi_ft_no_transplant", "cpi_ft_no_refine",
}]  # fmt: skip


def recipe(folder: Path, **changes: Any) -> Recipe:
    """Enough rows and steps that budgets can be equal to 2 %."""
    if not (folder / "base").exists():
        tiny.base(folder / "base", attention_bias=True)
    made = tiny.recipe(folder, **{"probe": {"steps": 40}, **changes})
    made["training"]["per_device_train_batch_size"] = 2
    return Recipe.parse(made)


@pytest.fixture(
    scope="module", params=[pytest.param(SHORT, id="some"), pytest.param(METHODS, id="all", marks=pytest.mark.long)]
)
def methods(request: pytest.FixtureRequest) -> list[str]:
    return list(request.param)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, methods: list[str]) -> tuple[Path, dict[str, Any], Recipe]:
    place = tmp_path_factory.mktemp("compare")
    asked = recipe(place)
    with one_thread():
        compare(asked, place / "c", methods, [0], ["equal_tokens"])
        found = compare(asked, place / "c", methods, [0], ["equal_tokens", "incremental"])
    return place, found, asked


def test_every_method_is_scored_with_every_seed(done: tuple[Path, dict[str, Any], Recipe], methods: list[str]) -> None:
    """All items of all tasks; the file holds what was returned."""
    place, found, asked = done
    assert json.loads((place / "c/comparison.json").read_text()) == found
    assert found["state"] == "done"
    assert set(found["budgets"]["equal_tokens"]) == {m for m in methods if "sequential" not in m}
    assert {"sequential", "sequential_replay", "multi_task", "cpi_ft"} < set(found["budgets"]["incremental"])
    for results in found["budgets"]["equal_tokens"].values():
        assert set(results) == {"0"}
        for result in results.values():
            assert {task: len(score["items"]) for task, score in result["scores"].items()} == dict.fromkeys(
                asked.tasks, 6
            )
    table = markdown(found)
    assert "**incremental**, 1 seeds" in table
    assert "**incremental**, 1 of 2 seeds so far" in markdown({**found, "seeds": [0, 1]})
    assert all(f"`{method}`" in table for method in methods)
    guarded = {m for m, row in found["summary"]["equal_tokens"].items() if "neutral text" in row.get("guard", {})}
    assert guarded == set(found["budgets"]["equal_tokens"]) - {"single_task"}


def test_budgets_are_equal(done: tuple[Path, dict[str, Any], Recipe]) -> None:
    """Counted tokens, within 2 %, base apart."""
    _, found, _ = done
    tokens = {m: r["0"]["tokens"] for m, r in found["budgets"]["equal_tokens"].items() if m != "base"}
    assert tokens["cpi_ft"] > 0
    assert {m: t for m, t in tokens.items() if abs(t / tokens["cpi_ft"] - 1) > 0.02} == {}


def test_a_second_call_makes_nothing(done: tuple[Path, dict[str, Any], Recipe], methods: list[str]) -> None:
    """Neither a stage nor another answer; no weights are left."""
    place, found, asked = done
    heard = Listener()
    again = compare(asked, place / "c", methods, [0], ["equal_tokens", "incremental"], reporter=heard)
    assert heard.made == []
    assert again == found
    assert not list((place / "c").rglob("model*.safetensors"))


def test_probes_are_trained_once_a_seed(tmp_path: Path) -> None:
    """Methods that need the same probes share them, and kept models are those of a run of its own."""
    from cpift.runs.pipeline import run

    asked, heard = recipe(tmp_path, probe={"steps": 3}), Listener()
    with one_thread():
        compare(
            asked,
            tmp_path / "c",
            ["single_task", "multi_stage_random", "cpi_ft"],
            [0],
            ["paper"],
            keep_models=True,
            reporter=heard,
        )
        run(asked, tmp_path / "run")
    assert sum(name.startswith("01-probe") for name in heard.made) == len(asked.tasks)
    last = sorted((tmp_path / "run/stages/06-refine").iterdir())[-1].name
    assert same(tmp_path / f"c/seeds/0/paper/cpi_ft/stages/06-refine/{last}", tmp_path / f"run/stages/06-refine/{last}")


def test_arrivals(done: tuple[Path, dict[str, Any], Recipe]) -> None:
    """One for each task, scored on all tasks; equal tokens at each but for retraining on everything."""
    _, found, asked = done
    arrivals = {m: r["0"]["arrivals"] for m, r in found["budgets"]["incremental"].items()}
    for each in arrivals.values():
        assert [a["task"] for a in each] == list(asked.tasks)
        assert all(list(a["scores"]) == list(a["items"]) == list(asked.tasks) for a in each)
    tokens = {m: [a["tokens"] for a in each] for m, each in arrivals.items()}
    assert tokens["multi_task"][2] == pytest.approx(3 * tokens["sequential"][2], rel=0.1)
    for method in ("sequential", "sequential_replay", "cpi_ft_sequential"):
        assert tokens[method] == pytest.approx(tokens["cpi_ft"], rel=0.05)


def test_an_arrival_is_fused_with_the_model_before(tmp_path: Path) -> None:
    """Earlier cores keep every bit in training; the new core is transplanted; the rest is SLERP, by plain numpy."""
    asked = recipe(tmp_path, probe={"steps": 6})
    with one_thread():
        compare(asked, tmp_path / "c", ["cpi_ft_sequential"], [0], ["incremental"], keep_models=True)
    stages = tmp_path / "c/seeds/0/incremental/cpi_ft_sequential/stages"
    first, second, *_ = asked.tasks
    before, trained = (plain.load(stages / f"continued/{i}/trained") for i in (1, 2))
    fused = plain.load(stages / "continued/2/fused")
    cores = {t: Region.load(stages / f"02-identify/{t}/region.safetensors") for t in (first, second)}
    expected = plain.core(before, trained, str(asked.region.percent))
    assert plain.as_set(cores[second].positions) == plain.as_set(expected)
    for name, kept in cores[first].positions.items():
        assert np.array_equal(trained[name].ravel()[kept], before[name].ravel()[kept])
    for name, value in fused.items():
        core = cores[second].positions.get(name, np.array([], dtype=int))
        rest = np.setdiff1d(np.arange(value.size), core)
        assert np.array_equal(value.ravel()[core], trained[name].ravel()[core])
        wanted = plain.slerp(before[name].ravel()[rest], trained[name].ravel()[rest], 0.5)
        assert np.allclose(value.ravel()[rest], wanted, atol=1e-6)


def test_intervals_agree_with_scipy() -> None:
    """One seed, one task: Student's paired interval over items."""
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2, 200).astype(float), rng.integers(0, 2, 200).astype(float)

    def result(items: np.ndarray) -> dict[str, Any]:
        score = {"metric": "exact_match", "score": float(items.mean()), "items": items.tolist(), "tokens": [1] * 200}
        return {"0": {"tokens": 1, "seconds": 1.0, "scores": {"t": score}}}

    tasks = {"t": {"metric": "exact_match"}}
    ours = difference(result(a), result(b), tasks)
    theirs = ttest_rel(a, b).confidence_interval()
    assert ours["mean"]["difference"] == pytest.approx(np.mean(a - b))
    assert ours["tasks"]["t"]["low"] == pytest.approx(theirs.low)
    assert ours["mean"]["high"] == pytest.approx(theirs.high)
    assert summary(result(a), tasks, result(b))["tasks"]["t"]["mean"] == pytest.approx(a.mean())


def test_seeds_widen_the_interval() -> None:
    """Methods that differ by seed, not by item: an interval over items alone would have no width."""

    def results(values: list[float]) -> dict[str, Any]:
        return {
            str(i): {"tokens": 1, "seconds": 1.0, "scores": {"t": {"metric": "exact_match", "score": v, "items": [v] * 50, "tokens": [1] * 50}}}
            for i, v in enumerate(values)
        }  # fmt: skip

    found = difference(results([0.9, 0.5, 0.7]), results([0.5, 0.6, 0.5]), {"t": {"metric": "exact_match"}})
    theirs = ttest_rel([0.9, 0.5, 0.7], [0.5, 0.6, 0.5])
    assert found["mean"]["low"] == pytest.approx(theirs.confidence_interval().low)
    assert found["mean"]["p"] == pytest.approx(theirs.pvalue)
    assert found["mean"]["low"] < 0 < found["mean"]["high"]
    assert (found["wins"], found["losses"], found["ties"]) == (0, 0, 1)


def test_forgetting_counts_each_arrival() -> None:
    """By hand: old tasks fall by 0.4 (a at b's arrival), 0.2 and 0.2 (a and b at c's); new ones gain 0.6 and 0.8."""
    after = {"a": (1.0, 0.6, 0.4), "b": (0.0, 0.6, 0.4), "c": (0.0, 0.0, 0.8)}
    items = {t: [[1.0] * round(10 * v) + [0.0] * (10 - round(10 * v)) for v in values] for t, values in after.items()}
    arrivals = [
        {"task": t, "scores": {u: after[u][i] for u in after}, "items": {u: items[u][i] for u in after}}
        for i, t in enumerate(after)
    ]
    scores = {t: {"metric": "exact_match", "tokens": [1] * 10} for t in after}
    found = forgetting({"0": {"scores": scores, "arrivals": arrivals}}, {t: {"metric": "exact_match"} for t in after})
    assert found["old"]["difference"] == pytest.approx(-(0.4 + 0.2 + 0.2) / 3)
    assert found["new"]["difference"] == pytest.approx((0.6 + 0.8) / 2)
    assert found["old"]["low"] < found["old"]["difference"] < found["old"]["high"] < 0


def test_losses_are_turned() -> None:
    """Less loss is better, and longer rows weigh more."""

    def results(items: list[float]) -> dict[str, Any]:
        mean = (items[0] * 1 + items[1] * 3) / 4
        score = {"metric": "loss", "score": mean, "items": items, "tokens": [1, 3]}
        return {"0": {"tokens": 1, "seconds": 1.0, "scores": {"t": score}}}

    found = difference(results([1.0, 1.0]), results([2.0, 2.0]), {"t": {"metric": "loss"}})
    assert found["tasks"]["t"] == {"difference": 1.0, "low": 1.0, "high": 1.0, "p": 0.0}
    assert found["wins"] == 1


@pytest.mark.parametrize(("arguments", "said"), [
    (["--methods", "nope"], "nope is none of base"),
    (["--methods", "cpi_ft", "--budget", "nope"], "nope is none of paper"),
    (["--methods", "cpi_ft", "--seeds", "1", "1"], "no seed twice"),
    (["--methods", "cpi_ft:fuse.spice=updates"], "did you mean 'space'"),
    (["--methods", "sequential", "--budget", "paper"], "none of sequential"),
    (["--methods", "cpi_ft:fuse"], "KEY=VALUE"),
])  # fmt: skip
def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    """One line, exit code 2, nothing written."""
    (tmp_path / "r.yaml").write_text(recipe(tmp_path).dump())
    code, _, errors = call(capsys, "compare", tmp_path / "r.yaml", "--out", tmp_path / "c", *arguments)
    assert code == 2
    assert said in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_a_variant_with_several_settings() -> None:
    """Commas part settings, also where a value is a list."""
    found = overrides_of("cpi_ft:fuse.space=updates,region.exclude=['*a*', '*b*'],refine.freeze=false")
    assert found == {"fuse.space": "updates", "region.exclude": ["*a*", "*b*"], "refine.freeze": False}


def test_merging_needs_mergekit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is trained, with how to install it."""
    monkeypatch.setenv("CPIFT_MERGEKIT", str(tmp_path / "nowhere"))
    with pytest.raises(CpiftError, match="pip install mergekit"):
        compare(recipe(tmp_path), tmp_path / "c", ["ties"], [0], ["paper"])
    assert not (tmp_path / "c").exists()


@pytest.mark.skipif(not shutil.which(os.environ.get(VARIABLE, "mergekit-yaml")), reason="needs mergekit")
def test_merges_hold_every_tensor(tmp_path: Path) -> None:
    """mergekit's own table of Llama has no biases; a soup is the mean of the probes, biases and all."""
    compare(recipe(tmp_path), tmp_path / "c", ["soup", "ties"], [0], ["paper"], keep_models=True)
    made = tmp_path / "c/seeds/0/paper"
    soup = load_file(made / "soup/stages/merge/linear/model.safetensors")
    probes = [load_file(file) for file in sorted(made.glob("soup/stages/01-probe/*/model.safetensors"))]
    assert any(name.endswith("bias") for name in soup)
    assert len(probes) > 1
    for name, value in soup.items():
        np.testing.assert_allclose(value, np.mean([p[name] for p in probes], axis=0), atol=1e-7)


def test_a_merge_that_drops_tensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scored with new biases in place of the model's, it would be a rigged comparison."""
    script = tmp_path / "drops.py"
    script.write_text(DROPS)
    command = tmp_path / "mergekit-yaml"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(command))
    with pytest.raises(CpiftError, match=r"lacks .*bias"):
        compare(recipe(tmp_path), tmp_path / "c", ["soup"], [0], ["paper"])
    assert not list((tmp_path / "c").glob("results/**/soup.json"))


def test_forms_of_a_method() -> None:
    """What stands for another method is written down, and never inferred from how a name begins."""
    assert is_form_of("cpi_ft_no_freeze", "cpi_ft")
    assert is_form_of("cpi_ft:fuse.space=updates", "cpi_ft:refine.data=mixed")
    assert is_form_of("cpi_ft_sequential", "cpi_ft")
    assert not is_form_of("cpi_ft", "cpi_ft_no_freeze")
    assert not is_form_of("sequential_replay", "sequential")
    assert not is_form_of("multi_task_of_ones_own", "multi_task")
    assert all(method.variant_of is None or method.variant_of in TABLE for method in TABLE.values())
    assert all(method.run or method.arrive for method in TABLE.values())


@given(st.integers(150, 600))
def test_long_names_of_variants_have_folders_of_their_own(length: int) -> None:
    """A file name has 255 bytes, of which a half-written file's takes some."""
    methods = [f"cpi_ft:{'fuse.weight=0.1,' * 50}"[:length] + end for end in "12"]
    folders = {Job("equal_tokens", method, 0).folder for method in methods}
    assert len(folders) == 2
    assert all(len(f".{part}.json.partial".encode()) <= 255 for folder in folders for part in folder.split("/"))


def test_a_stage_makes_up_for_what_those_before_saw_too_much() -> None:
    """Each sees a fifth more than it is given: in all it would be a fifth, with the last to mend it it is a fifteenth."""
    seen: list[float] = []

    class Short:
        tasks, base, budget = ("a", "b", "c"), ("", Path()), 300.0

        def epoch_tokens(self, tasks: Sequence[str]) -> float:
            return 10.0 * len(tasks)

        def spent(self, prefix: str) -> float:
            return sum(seen)

        def train(self, name: str, start: Any, group: Any, tokens: float, replay: Any) -> Any:
            seen.append(1.2 * tokens)
            return name, Path()

        def score(self, name: str, place: Any) -> dict[str, Any]:
            return {}

    in_stages(Short(), "m", [["a"], ["b"], ["c"]])  # type: ignore[arg-type]
    assert sum(seen) < 300 * (1 + 0.2 / 3)
