"""Jobs in worker processes: side by side, survived, stopped; and a run by them is the run of one process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import engine_jobs
import preloaded
import pytest
import tiny
import tiny_run
import torch
import yaml
from engine_jobs import facts, gone, job, kill_a_worker
from tiny_run import Listener, call, same, stamps

from cpift.compare import compare
from cpift.distributed.engine import Job, JobError, make_engine
from cpift.distributed.jobs import Engine
from cpift.distributed.local import _gpu
from cpift.distributed.worker import work
from cpift.errors import CpiftError
from cpift.kernels.threads import core_count
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run

THREADS = max(1, core_count() // 2)  # of a job, where two run side by side


@pytest.fixture(autouse=True)
def _workers_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, found)))


def two() -> Engine:
    engine = make_engine("local", 2)
    assert engine is not None
    return engine


def test_side_by_side_and_a_killed_worker(tmp_path: Path) -> None:
    """Two jobs meet; one that is killed is done by another process; each says what it has to say in its log."""
    a, b, mark = tmp_path / "a", tmp_path / "b", tmp_path / "mark"
    said: list[str] = []
    jobs = [
        job(tmp_path, engine_jobs.die_once, mark),
        job(tmp_path, engine_jobs.meet, a, b, name="a"),
        job(tmp_path, engine_jobs.meet, b, a, name="b"),
    ]
    with two() as engine:
        done = {job.name: value for job, value in engine.run(jobs, said.append)}
    assert done["a"][0] != done["b"][0]
    assert {value[1:] for value in (done["a"], done["b"])} == {(THREADS, str(tmp_path))}
    assert done["die_once"] != int(mark.read_text())
    log = (tmp_path / "logs/die_once.log").read_text()
    assert [re.findall(r"try \d, process \d+", line) for line in log.splitlines()] == [
        [f"try 1, process {mark.read_text()}"],
        [f"try 2, process {done['die_once']}"],
    ]
    assert "here, beneath Python" in (tmp_path / "logs/a.log").read_text()
    assert any("died of SIGKILL; it is tried again" in text for text in said)
    assert all(gone(process) for process in (done["a"][0], done["b"][0], done["die_once"]))


def test_a_job_that_keeps_failing(tmp_path: Path) -> None:
    """Three tries, then its log's last lines."""
    with two() as engine, pytest.raises(JobError) as told:
        list(engine.run([job(tmp_path, engine_jobs.fail, tmp_path / "mark")], lambda text: None))
    assert (tmp_path / "mark").read_text() == "xxx"
    assert "fail: failed 3 times, at last: RuntimeError: the 7th layer is missing" in str(told.value)
    assert 'raise RuntimeError("the 7th layer is missing")' in str(told.value)
    assert told.value.job == "fail"


def test_a_refused_job_stops_all(tmp_path: Path) -> None:
    """At once, with its own message; the job beside it is ended."""
    jobs = [job(tmp_path, engine_jobs.sleep, tmp_path / "m"), job(tmp_path, engine_jobs.refuse, tmp_path / "m")]
    with two() as engine, pytest.raises(CpiftError) as told:
        list(engine.run(jobs, lambda text: None))
    assert str(told.value) == "rows.jsonl: line 3 is no row; mend it"
    assert gone(int((tmp_path / "m").read_text()))
    assert (tmp_path / "logs/refuse.log").read_text().count("==") == 1


def test_a_folder_that_a_worker_does_not_see(tmp_path: Path) -> None:
    """As on a cluster without a shared file system."""
    asked = Job("j", "test", engine_jobs.die_once, (), tmp_path / "log", str(tmp_path / "nowhere"))
    reply = work(asked, attempt=1, threads=torch.get_num_threads())
    assert "nowhere is not seen on " in reply.refused
    assert reply.failed == ""


def test_workers_end_with_their_leader(tmp_path: Path) -> None:
    """However it ends."""
    script = (
        "import sys, pathlib, engine_jobs\nfrom cpift.distributed.engine import Job, make_engine\nplace = pathlib.Path(sys.argv[1])\n"
        "jobs = [Job('s', 'test', engine_jobs.sleep, (place / 'm',), place / 'log')]\n"
        "list(make_engine('local', 2).run(jobs, print))"
    )
    leader = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.DEVNULL)
    while not (tmp_path / "m").exists():
        assert leader.poll() is None
        time.sleep(0.02)
    leader.kill()
    leader.wait()
    assert gone(int((tmp_path / "m").read_text()))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in this process, with as many threads as a job has; a warning in its probes. Beside it the recipe."""
    place = tmp_path_factory.mktemp("engine")
    asked = tiny.recipe(place)
    rows = [json.dumps(row) for row in tiny.rows("reverse", 15, 0)]
    long = {"role": "user", "content": "reverse " + "ab" * 80}
    answer = {"role": "assistant", "content": "ba"}
    tiny.jsonl(place / "reverse.train.jsonl", [*rows, json.dumps({"messages": [long, answer]})])
    (place / "r.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
    with tiny_run.one_thread():
        torch.set_num_threads(THREADS)
        run(place / "r.yaml", place / "one")
    return place / "one"


def test_probes_by_workers_are_those_of_one_process(one: Path, tmp_path: Path) -> None:
    """Bit for bit, with the same findings; no probe is trained in this process."""
    out, heard = tmp_path / "out", Listener()
    with tiny_run.one_thread():
        torch.set_num_threads(THREADS)
        run(one.parent / "r.yaml", out, until="probe", reporter=heard, engine=two())
    probes = sorted(name for name in stamps(one) if name.startswith("01-probe"))
    assert len(probes) == 3
    for stage in probes:
        assert same(out / "stages" / stage, one / "stages" / stage)
        assert facts(out, stage)["findings"] == facts(one, stage)["findings"]
        assert facts(out, stage)["threads"] == facts(one, stage)["threads"] == THREADS
    assert not any(name.startswith("01-probe") for name in heard.made), "made here, not by a worker"


@pytest.mark.long  # its probes: the test above; a worker that is killed: the first of this file
def test_a_run_by_workers_is_the_run_of_one_process(one: Path, tmp_path: Path) -> None:
    """The same stages, models, scores and warnings, bit for bit, with a worker killed on the way; then nothing is left to do."""
    out, heard = tmp_path / "out", Listener()
    killer = threading.Thread(target=kill_a_worker, args=[out / "logs/01-probe-upper.log"], daemon=True)
    killer.start()
    with tiny_run.one_thread():
        torch.set_num_threads(THREADS)
        run(one.parent / "r.yaml", out, reporter=heard, engine=two())
    killer.join(1)
    assert not killer.is_alive()
    assert any("died of SIGKILL" in text for text in heard.said)
    assert set(stamps(out)) == set(stamps(one))
    models = [str(f.parent.relative_to(one)) for f in one.glob("stages/**/model.safetensors")]
    assert len(models) == 10
    assert all(same(out / model, one / model) for model in [*models, "model"])
    assert json.loads((out / "scores.json").read_text()) == json.loads((one / "scores.json").read_text())
    told = "01-probe/reverse: 1 rows have no trained part after truncation and were left out"
    assert told in [found["text"] for found in facts(one, "01-probe/reverse")["findings"]]
    for stage in stamps(one):
        assert facts(out, stage)["findings"] == facts(one, stage)["findings"], stage
        assert facts(out, stage)["threads"] == facts(one, stage)["threads"] == THREADS, stage
    assert heard.said.count(told) == 1
    assert not any(name.startswith(("01-probe", "07-")) for name in heard.made), "made here, not by a worker"
    probes = [text for text in heard.said if text.startswith("01-probe") and ("log:" in text or "done" in text)]
    assert ["log:" in text for text in probes[:2]] == [True, True], "the first two begin together"
    assert not list(out.rglob("*.partial"))
    again, before = Listener(), stamps(out)
    run(one.parent / "r.yaml", out, reporter=again, engine=two())
    assert (again.made, stamps(out)) == ([], before)


@pytest.mark.long  # of one process: faults/test_signals.py; of workers without a run: the test above
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_told_to_stop(one: Path, tmp_path: Path, name: str) -> None:
    """Within seconds, workers included, with how to go on."""
    out, said = tmp_path / "out", tmp_path / "said"
    recipe = one.parent / "r.yaml"
    process = preloaded.start(["run", str(recipe), "--out", str(out), "--until", "probe", "--jobs", "2"], said)
    log = out / "logs/01-probe-upper.log"
    while not (log.is_file() and "process" in log.read_text()):
        assert process.is_alive(), said.read_text()
        time.sleep(0.02)
    worker = re.search(r"process (\d+)", log.read_text())
    assert process.pid is not None
    assert worker is not None
    began = time.monotonic()
    os.kill(process.pid, getattr(signal, name))
    process.join(30)
    assert time.monotonic() - began < 10
    assert process.exitcode == 130
    assert said.read_text().splitlines()[-1] == "stopped; run the same command again to resume"
    assert gone(int(worker[1]))
    assert tiny_run.whole_stages_only(out)


@pytest.mark.long  # what a job refuses: test_a_refused_job_stops_all
def test_a_training_that_diverges(one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the job says is what is said, after one try; the log names the stage."""
    sets = ["--set", "training.learning_rate=1e9", "--set", "training.logging_steps=1"]
    code, _, errors = call(capsys, "run", one.parent / "r.yaml", "--out", tmp_path / "out", "--jobs", "2", *sets)
    assert code == 2
    assert re.search(r"^cpift: 01-probe/\w+ \(\w+\): .*lower training.learning_rate", errors, re.M), errors
    assert "times" not in errors
    events = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "error"
    assert events[-1]["stage"].startswith("01-probe/")
    assert not list((tmp_path / "out/stages").glob("01-probe/*/stage.json"))


def test_seeds_of_a_comparison(tmp_path: Path) -> None:
    """The results of one process; what is done is not done again."""
    asked, heard = Recipe.parse(tiny.recipe(tmp_path, ("reverse", "upper"))), Listener()

    def results(out: Path, engine: Engine | None, **more: Any) -> Any:
        with tiny_run.one_thread():
            torch.set_num_threads(THREADS)
            found = compare(asked, out, ["single_task"], [0, 1], ["paper"], engine=engine, **more)
        return {s: r["scores"] for s, r in found["budgets"]["paper"]["single_task"].items()}

    alone = results(tmp_path / "alone", None)
    assert set(alone) == {"0", "1"}
    assert results(tmp_path / "two", two(), reporter=heard) == alone
    assert sum("done in" in text for text in heard.said) == 2
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "two/results").rglob("*.json")}
    assert len(before) == 2
    assert results(tmp_path / "two", two()) == alone
    assert {f: f.stat().st_mtime_ns for f in before} == before


@pytest.mark.parametrize(("options", "said"), [
    (["--engine", "slurm"], "--engine slurm: choose local or ray"),
    (["--jobs", "0"], "--jobs 0: at least 1"),
    (["--address", "auto"], "--address: only with --engine ray"),
    (["--gpus-per-job", "1"], "--gpus-per-job: only with --engine ray"),
    (["--engine", "ray", "--gpus-per-job", "2"], "for several use torchrun"),
])  # fmt: skip
@pytest.mark.parametrize("command", [["run"], ["compare", "--methods", "base"]], ids=["run", "compare"])
def test_bad_options(
    command: list[str], options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, before anything is made."""
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(tiny.recipe(tmp_path)))
    code, _, errors = call(capsys, command[0], file, "--out", tmp_path / "out", *command[1:], *options)
    assert code == 2
    assert said in errors
    assert errors.count("\n") == 1


def test_not_under_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose processes are all at one training."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    assert make_engine() is None
    with pytest.raises(CpiftError, match="not under torchrun"):
        make_engine("local", 2)


def test_each_worker_sees_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that are visible; nothing is set where there is one or none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [_gpu(n)["CUDA_VISIBLE_DEVICES"] for n in range(2)] == ["4", "6"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [_gpu(n)["CUDA_VISIBLE_DEVICES"] for n in range(2)] == ["0", "1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert _gpu(1) == {}


def test_more_jobs_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs on one card would run out of its memory; as many as there are, and any number without a GPU, are fine."""
    for gpus, jobs, remedy in ((1, 2, "there is 1 GPU here; leave --jobs out"), (4, 5, "4 GPUs here; set --jobs 4")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        with pytest.raises(CpiftError, match=rf"^--jobs {jobs}: each job takes a GPU.*{remedy}"):
            make_engine("local", jobs)
    assert make_engine("local", 4) is not None
    assert make_engine("local", 1) is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert make_engine("local", 64) is not None


@pytest.mark.parametrize(
    ("gpus", "jobs", "launched", "lines"),
    [
        (8, None, False, 1),
        (8, 8, False, 0),
        (8, 1, False, 0),
        (8, None, True, 0),
        (1, None, False, 0),
        (0, None, False, 0),
    ],
)
def test_unused_gpus_are_named_once(
    monkeypatch: pytest.MonkeyPatch, gpus: int, jobs: int | None, launched: bool, lines: int
) -> None:
    """With several GPUs, where neither --jobs nor a launcher says that one is meant."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in {"RANK": "0", "WORLD_SIZE": "8", "MASTER_ADDR": "localhost"}.items() if launched else ():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    make_engine("local", jobs, say=said.append)
    assert len(said) == lines
    assert all("there are 8 GPUs here" in text and "--jobs 8" in text and "torchrun" in text for text in said)


def test_the_command_names_unused_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``cpift run`` as well as the function."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(tiny.recipe(tmp_path)))
    code, out, errors = call(capsys, "run", file, "--out", tmp_path / "out", "--dry-run")
    assert code == 0
    assert (out + errors).count("there are 8 GPUs here") == 1
