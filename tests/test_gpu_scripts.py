"""The GPU scripts at their tiny size on a CPU, and each of their steps failing on purpose without stopping the others."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import re
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny_run import one_thread

ROOT = Path(__file__).parents[1]
GPU = ROOT / "benchmarks" / "gpu"
SCRIPT = GPU / "first_contact.py"
sys.path[:0] = [str(GPU), str(GPU.parent)]

import first_contact  # noqa: E402
import steps as step_runner  # noqa: E402
from record import Measure  # noqa: E402
from steps import Outcome, StepPlan, run_steps, table  # noqa: E402


def start(out: Path, *arguments: Any) -> subprocess.Popen[str]:
    """The script at its tiny size, as a user would start it: without the package's source on the path."""
    command = [sys.executable, str(SCRIPT), "--tiny", "--out", str(out), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def results(out: Path) -> dict[str, dict[str, Any]]:
    """Outcomes by step, as the JSON has them."""
    data = json.loads((out / "first_contact.json").read_text())
    return {step["name"]: step for step in data["steps"]}


def values(step: dict[str, Any]) -> dict[str, Any]:
    return {measure["what"]: measure["value"] for measure in step["measures"]}


def _step_here(plan: StepPlan, limit: float, scratch: Path, log: Path, arguments: Sequence[str]) -> Outcome:
    """A step's script in this process, which has imported the libraries, in place of a process of its own."""
    result, began, code = scratch / f"{plan.name}.json", time.monotonic(), 0
    given = ["--out", str(result), "--scratch", str(scratch), "--seconds", str(limit), *arguments]
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        log.open("a") as output,
        contextlib.redirect_stdout(output),
    ):
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", [plan.script, *given])
        try:
            runpy.run_path(str(GPU / plan.script), run_name="__main__")
        except SystemExit as stop:
            code = int(stop.code or 0)
    outcome = Outcome(plan.name, step_runner._state(code, False), time.monotonic() - began, limit)
    step_runner._read_result(outcome, result)
    return outcome


def call_here(script: Path, *arguments: Any) -> tuple[int, str]:
    """A script at its tiny size with all its steps in this process, but for the tests: exit code, what it printed."""
    process_of = step_runner._run_step
    handler, printed, code = signal.getsignal(signal.SIGTERM), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), one_thread():
        patch.setattr(
            step_runner,
            "_run_step",
            lambda plan, *more: (process_of if plan.name == "tests" else _step_here)(plan, *more),
        )
        patch.setattr(sys, "argv", [str(script), "--tiny", *map(str, arguments)])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            signal.signal(signal.SIGTERM, handler)
    return code, printed.getvalue()


def call_processes(script: Path, *arguments: Any) -> tuple[int, str]:
    """A script at its tiny size as a user would start it, a process for each step: exit code, what it printed."""
    command = [sys.executable, str(script), "--tiny", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


# A process for each step takes a minute longer, to import the libraries again and again.
WAYS = [pytest.param(call_here, id="here"), pytest.param(call_processes, id="processes", marks=pytest.mark.long)]


@pytest.fixture(scope="module", params=WAYS)
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, dict[str, Any]], str]:
    """Every step once, and what was printed."""
    place = tmp_path_factory.mktemp("gpu")
    tiny.recipe(place, tasks=("reverse", "double"))  # writes a model and rows
    for task in ("reverse", "double"):
        for part in ("train", "eval"):
            (place / "data" / task).mkdir(parents=True, exist_ok=True)
            (place / f"{task}.{part}.jsonl").rename(place / "data" / task / f"{part}.jsonl")
    given = ("--model", place / "base", "--data", place / "data")
    code, printed = request.param(SCRIPT, "--out", place / "out", "--budget", 800, *given)
    assert code == 0, printed
    return results(place / "out"), printed


def test_every_step_is_done_at_the_tiny_size(finished: tuple[dict[str, dict[str, Any]], str]) -> None:
    """None is skipped where a model and rows are given, and each stays within its limit."""
    steps, _ = finished
    assert {name: step["state"] for name, step in steps.items()} == dict.fromkeys(first_contact.NAMES, "done")
    assert all(step["seconds"] < step["limit"] for step in steps.values())
    assert not any(step["faults"] for step in steps.values())


def test_the_table_holds_what_was_measured(finished: tuple[dict[str, dict[str, Any]], str]) -> None:
    steps, printed = finished
    freeze = values(steps["freeze"])
    for optimizer in ("AdamW", "AdamW fused", "AdamW foreach", "SGD momentum"):
        for percent in (1, 30):
            assert isinstance(freeze[f"{optimizer}, {percent} % frozen"], float)
    for name in ("run-tiny", "run-real"):
        stages = [what for what in values(steps[name]) if what.startswith("stage ")]
        assert {"stage 01-probe", "stage 02-identify", "stage 04-backbone", "stage 05-fuse", "stage 06-refine"} <= set(
            stages
        )
        assert values(steps[name])["groups"] == 2  # so that the last stage freezes something
    assert values(steps["training"])["largest batch that fits"] == 16
    assert values(steps["training"])["batch 16: TRL alone"] > 0
    assert values(steps["scoring"])["rows a second, generated"] > 0
    assert values(steps["merge"])["tiny, 1 thread: fuse"] > 0
    assert values(steps["tests"])["tests passed"] == 5
    assert values(steps["machine"])["trl"] == importlib.metadata.version("trl")
    assert all(f"**{name}**" in printed for name in first_contact.NAMES)


@pytest.mark.long  # eight processes; single failures are tested below
def test_each_step_can_fail_and_the_others_run(tmp_path: Path) -> None:
    """Every step fails in one call: all are tried, each leaves its last lines and its reason."""
    modes = ["raise", "kill"] * len(first_contact.NAMES)
    broken = [
        text for name, how in zip(first_contact.NAMES, modes, strict=False) for text in ("--break", f"{name}={how}")
    ]
    call = start(tmp_path, "--budget", 60, *broken)
    printed, _ = call.communicate()
    assert call.returncode == 1, printed
    steps = results(tmp_path)
    assert list(steps) == first_contact.NAMES
    for (name, step), how in zip(steps.items(), modes, strict=False):
        assert step["state"] == ("failed" if how == "raise" else "killed"), name
        assert step["reason"] == ("exit code 1" if how == "raise" else "ended by signal 9"), name
        last = "RuntimeError: broken on purpose" if how == "raise" else "this step was asked to kill"
        assert step["last_lines"][-1] == last
        assert last in printed


def test_a_step_that_hangs_is_ended_at_its_limit_and_its_time_is_not_the_next_one_s(tmp_path: Path) -> None:
    """The time limit of one step; what it had measured stays, and where it was is in its last lines."""
    plans = [StepPlan("merge", "merge_speed.py", 1, ""), StepPlan("run-real", "whole_run.py", 4, "", ("--real",))]
    seen: list[list[str]] = []
    outcomes = run_steps(
        plans, 15, tmp_path, tmp_path / "log", common=["--tiny"], broken={"merge": "hang"},
        after=lambda so_far: seen.append([outcome.state for outcome in so_far]),
    )  # fmt: skip
    assert seen == [["timed out"], ["timed out", "skipped"]]
    assert outcomes[0].limit == pytest.approx(3, abs=0.1)
    assert outcomes[0].seconds < 6
    assert any("fail_on_purpose" in line for line in outcomes[0].last_lines)
    assert outcomes[1].reason == "needs --model, which was not given"


def scripted(tmp_path: Path, text: str) -> StepPlan:
    """A step of its own text."""
    file = tmp_path / "own.py"
    file.write_text(f"from step import *\n\ndef work(step):\n    {text}\n\nrun(work)\n")
    return StepPlan("own", str(file), 1, "")


@pytest.fixture
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's script elsewhere still finds what the steps share."""
    monkeypatch.setenv("PYTHONPATH", str(GPU))


@pytest.mark.usefixtures("on_the_path")
def test_what_a_killed_step_had_measured_is_kept(tmp_path: Path) -> None:
    plan = scripted(tmp_path, "step.record.add('rows', 3, 'rows/s'); fail_on_purpose('kill')")
    (outcome,) = run_steps([plan], 20, tmp_path, tmp_path / "log")
    assert (outcome.state, outcome.measures) == ("killed", [Measure("rows", 3, "rows/s")])


@pytest.mark.usefixtures("on_the_path")
def test_a_wrong_result_is_a_failure(tmp_path: Path) -> None:
    """A step that ran to its end and found frozen elements changed did not succeed."""
    (outcome,) = run_steps(
        [scripted(tmp_path, "step.record.fault('2 bits'); step.record.fault('rank')")], 20, tmp_path, tmp_path / "log"
    )
    assert (outcome.state, outcome.reason, outcome.last_lines) == (
        "failed",
        "2 bits; and 1 more",
        ["wrong: 2 bits", "wrong: rank"],
    )


@pytest.mark.usefixtures("on_the_path")
def test_a_library_that_is_missing_is_named_and_skips_the_step(tmp_path: Path) -> None:
    plan = scripted(tmp_path, "need('json', 'json:nothing', 'no_such_library')")
    (outcome,) = run_steps([plan], 20, tmp_path, tmp_path / "log")
    assert outcome.state == "skipped"
    assert "json, which does not import: AttributeError" in outcome.reason
    assert "no_such_library, which does not import: ModuleNotFoundError" in outcome.reason


def test_limits_add_up_to_the_budget_and_unused_time_passes_on(tmp_path: Path) -> None:
    """By shares 1 and 3 of 8 s: 2 s for the first, and nearly all that is left of 8 s for the last."""
    plans = [
        StepPlan("run-real", "whole_run.py", 1, "", ("--real",)),
        StepPlan("again", "whole_run.py", 3, "", ("--real",)),
    ]
    first, last = run_steps(plans, 8, tmp_path, tmp_path / "log")
    assert first.limit == pytest.approx(2, abs=0.1)
    assert last.limit == pytest.approx(8 - first.seconds, abs=0.5)
    (late,) = run_steps(plans[:1], 0.1, tmp_path, tmp_path / "log")
    assert late.state == "no time left"
    assert late.failed


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "nowhere"], "there is no nowhere"),
        (["--steps", "fly"], "invalid choice: 'fly'"),
        (["--budget", "0"], "give seconds above 0"),
        (["--sets", "a", "b"], "there is no a/train.jsonl"),
        (["--break", "fly"], "fly is not STEP"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and one line, before any step."""
    with pytest.raises(SystemExit) as stop:
        first_contact.main(arguments)
    assert stop.value.code == 2
    assert reason in capsys.readouterr().err


def test_the_page_names_each_step_and_its_part_of_the_budget() -> None:
    """docs/gpu.md has the steps in their order, with the shares that the script gives them."""
    page = (ROOT / "docs" / "gpu.md").read_text()
    total = sum(plan.share for plan in first_contact.STEPS)
    expected = [(plan.name, f"{plan.share / total:.0%}".replace("%", " %")) for plan in first_contact.STEPS]
    assert re.findall(r"^\| `([\w-]+)` \| (\d+ %) \|", page, re.M) == expected


def test_no_cell_breaks_the_table() -> None:
    """Line ends and bars in a message stay within their cell."""
    outcome = Outcome("merge", "failed", reason="one\ntwo | three", measures=[Measure("left", None, note="why")])
    lines = table([outcome]).splitlines()
    assert len(lines) == 4
    assert lines[2].endswith("| one two \\| three |")
    assert "left out | why" in lines[3]


def test_a_run_needs_no_installed_package_but_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a network the source is put on the path; the versions in stage.json must not ask for more."""
    import cpift
    from cpift.runs.usage import versions

    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "cpift":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    versions.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert versions()["cpift"] == cpift.__version__


@pytest.mark.parametrize("call", WAYS)
def test_adapters_are_compared_at_the_tiny_size(tmp_path: Path, call: Any) -> None:
    """Regions of LoRA beside those of the whole model, with chance; the loss of each."""
    code, printed = call(GPU / "adapters.py", "--out", tmp_path, "--budget", 200)
    assert code == 0, printed
    machine, step = json.loads((tmp_path / "adapters.json").read_text())["steps"]
    assert machine["state"] == step["state"] == "done"
    measured, notes = values(step), {measure["what"]: measure["note"] for measure in step["measures"]}
    for rank in (8, 64):
        what = f"LoRA r = {rank}: Jaccard with full, "
        assert 0 <= measured[f"{what}all"] < 1
        assert f"{what}q_proj" in measured
        assert f"{what}embed_tokens" not in measured  # no adapter there, so no agreement to speak of
        total, full, lora = 1 / 0.01, *map(int, re.findall(r"(\d+) and (\d+) positions", notes[f"{what}all"])[0])
        assert full == lora  # both are 1 % of the model: two random regions meet at 1 % of either
        assert float(notes[f"{what}all"].split()[2].strip(";")) == pytest.approx(1 / (2 * total - 1), rel=0.02)
    losses = [measured[f"{name}: loss"] for name in ("base", "full", "LoRA r = 8", "LoRA r = 64")]
    assert all(loss > 0 for loss in losses)
    assert len(set(losses)) == 4
    assert "adapter-probes" in printed


@pytest.mark.parametrize("call", WAYS)
def test_the_stages_of_a_size_are_set_beside_the_plan_at_the_tiny_size(tmp_path: Path, call: Any) -> None:
    """Parameters of Qwen3's shape, counted by hand, and the plan's memory: 16 bytes a parameter at least."""
    code, printed = call(GPU / "size.py", "--out", tmp_path, "--budget", 200)
    assert code == 0, printed
    machine, step = json.loads((tmp_path / "size.json").read_text())["steps"]
    assert machine["state"] == step["state"] == "done"
    measured = values(step)
    layer = 64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64 + 2 * 16  # q, o; k, v; the feed-forward; norms
    count = 512 * 64 + 2 * layer + 64
    assert measured["tiny: parameters"] == count
    for stage in ("probe", "refine"):
        assert measured[f"tiny: {stage}: planned memory"] * 2**30 >= 16 * count
        assert measured[f"tiny: {stage}: measured memory"] is None  # no device
        assert measured[f"tiny: {stage}: seconds of training"] > 0
    assert measured["tiny: refine: predicted time"] > 0
    assert measured["tiny: identify"] > 0
    assert measured["tiny: fuse"] > 0
