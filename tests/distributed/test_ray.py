"""Jobs on a Ray cluster of two nodes on this machine: side by side, a killed worker survived, the results of one process."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import engine_jobs
import pytest
import tiny
import tiny_run
from engine_jobs import facts, gone, job, kill_a_worker, two_nodes
from tiny_run import Listener, call, same, stamps

from cpift.distributed.engine import make_engine
from cpift.errors import CpiftError
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run

pytest.importorskip("ray", reason="Ray is not installed; pip install 'cpift[ray]'")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of two nodes of one core each."""
    with two_nodes() as found:
        yield found


def test_jobs(address: str, tmp_path: Path) -> None:
    """One a node, side by side; one that is killed is done by another process; a refused one stops all."""
    a, b, mark, said = tmp_path / "a", tmp_path / "b", tmp_path / "mark", list[str]()
    jobs = [
        job(tmp_path, engine_jobs.meet, a, b, name="a"),
        job(tmp_path, engine_jobs.meet, b, a, name="b"),
        job(tmp_path, engine_jobs.die_once, mark),
    ]
    engine = make_engine("ray", address=address)
    assert engine is not None
    handler = signal.getsignal(signal.SIGTERM)
    with engine:
        assert signal.getsignal(signal.SIGTERM) == handler
        assert (engine.jobs, engine.threads) == (2, 1)
        done = {job.name: value for job, value in engine.run(jobs, said.append)}
        assert done["a"][0] != done["b"][0]
        assert {value[1:] for value in (done["a"], done["b"])} == {(1, str(tmp_path))}
        assert done["die_once"] != int(mark.read_text())
        assert any(re.match(r"die_once  WorkerCrashedError: .*; it is tried again", text) for text in said)
        assert "here, beneath Python" in (tmp_path / "logs/a.log").read_text()
        jobs = [job(tmp_path, engine_jobs.sleep, tmp_path / "m"), job(tmp_path, engine_jobs.refuse, tmp_path / "m")]
        with pytest.raises(CpiftError, match=r"line 3 is no row; mend it"):
            list(engine.run(jobs, said.append))
        assert gone(int((tmp_path / "m").read_text()))


@pytest.mark.long  # with workers of this machine it is in test_engine.py
def test_a_run_on_the_cluster_is_the_run_of_one_process(address: str, tmp_path: Path) -> None:
    """The same stages, models and scores, bit for bit, with a worker killed on the way; all training is done on the cluster."""
    asked, out, one, heard = (
        Recipe.parse(tiny.recipe(tmp_path, ("reverse", "upper"))),
        tmp_path / "out",
        tmp_path / "one",
        Listener(),
    )
    killer = threading.Thread(target=kill_a_worker, args=[out / "logs/01-probe-upper.log"], daemon=True)
    killer.start()
    with tiny_run.one_thread():
        run(asked, out, reporter=heard, engine=make_engine("ray", address=address))
        run(asked, one)
    killer.join(1)
    assert not killer.is_alive()
    assert any("01-probe/upper  WorkerCrashedError" in text for text in heard.said)
    assert set(stamps(out)) == set(stamps(one))
    models = [str(f.parent.relative_to(one)) for f in one.glob("stages/**/model.safetensors")]
    assert len(models) == 7
    assert all(same(out / model, one / model) for model in [*models, "model"])
    assert (out / "scores.json").read_text() == (one / "scores.json").read_text()
    assert {facts(out, stage)["threads"] for stage in stamps(out)} == {1}
    kinds = {name.split("/")[0] for name in heard.made}
    assert kinds == {"00-tasks", "02-identify", "03-group", "05-fuse"}
    probes = [text for text in heard.said if text.startswith("01-probe") and ("log:" in text or "done" in text)]
    assert ["log:" in text for text in probes[:2]] == [True, True], "both begin together"


def test_without_ray_or_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line each, with what to do."""
    (tmp_path / "r.yaml").write_text(Recipe.parse(tiny.recipe(tmp_path)).dump())
    arguments = ["run", tmp_path / "r.yaml", "--out", tmp_path / "out", "--engine", "ray"]
    code, _, errors = call(capsys, *arguments, "--address", "127.0.0.1:1")
    assert (code, errors.count("\n")) == (2, 1), errors
    assert "no cluster at 127.0.0.1:1" in errors
    assert "ray start --head" in errors
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, errors = call(capsys, *arguments)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert 'pip install "cpift[ray]"' in errors


@pytest.mark.long  # with workers of this machine it is in test_engine.py
def test_told_to_stop(address: str, tmp_path: Path) -> None:
    """Within seconds, with how to go on; the worker is gone."""
    recipe, out, log = tmp_path / "r.yaml", tmp_path / "out", tmp_path / "out/logs/01-probe-upper.log"
    recipe.write_text(Recipe.parse(tiny.recipe(tmp_path, ("upper",))).dump())
    options = [
        "--out",
        str(out),
        "--engine",
        "ray",
        "--address",
        address,
        "--until",
        "probe",
        "--set",
        "probe.steps=9999",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "cpift.cli", "run", str(recipe), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (log.is_file() and "process" in log.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    worker = re.search(r"process (\d+)", log.read_text())
    assert worker is not None
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert said.splitlines()[-1] == "stopped; run the same command again to resume"
    assert "Traceback" not in errors
    assert gone(int(worker[1]))
    assert tiny_run.whole_stages_only(out)
