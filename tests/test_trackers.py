"""``report_to`` over a whole run, by stand-ins for the services: a run a training, in one group, and one with the scores."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from cpift.data.encoding import encode
from cpift.errors import CpiftError
from cpift.files.layout import RunLayout
from cpift.train import trackers
from cpift.train.fine_tune import fine_tune
from cpift.train.spec import TrainSpec

# Each writes what it is called with, in order; the names are those that transformers' callbacks and we use.
WANDB = """
import json, os
from pathlib import Path
run, config = None, {}
def _note(*what):
    with open(os.environ["STAND_IN"], "a") as file:
        file.write(json.dumps(what, default=str) + "\\n")
class _Config(dict):
    def update(self, values, allow_val_change=False): pass
config = _Config()
class _Run:
    id, url = "1", "u"
    summary = {}
    def _label(self, **given): pass
    def log(self, values): _note("log", values)
def init(project=None, name=None, group=None, job_type=None):
    global run
    group = group or os.environ.get("WANDB_RUN_GROUP")
    kind = job_type or os.environ.get("WANDB_JOB_TYPE")
    _note("init", project, name, group, kind, os.environ.get("WANDB_TAGS"))
    run = _Run()
    return run
def log(values): _note("log", values)
def finish(exit_code=0):
    global run
    run = None
    _note("finish", exit_code)
def Table(columns, data): return {"table": data}
def Html(text, inject): return {"page": len(text)}
"""
BOARD = """
from pathlib import Path
class SummaryWriter:
    def __init__(self, log_dir):
        Path(log_dir).mkdir(parents=True, exist_ok=True)
        self._file = Path(log_dir) / "events"
    def _write(self, *what):
        with self._file.open("a") as file:
            file.write(" ".join(map(str, what)).replace("\\n", " ") + "\\n")
    def add_scalar(self, name, value, step): self._write(name, value, step)
    def add_text(self, name, text, step=None): self._write(name, text)
    def flush(self): pass
    def close(self): pass
"""


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """wandb and tensorboardX, and the file in which wandb's calls are noted."""
    place = tmp_path / "packages"
    (place / "wandb/sdk/lib").mkdir(parents=True)
    (place / "tensorboardX").mkdir()
    (place / "wandb/__init__.py").write_text(WANDB)
    (place / "wandb/sdk/__init__.py").touch()
    (place / "wandb/sdk/lib/__init__.py").touch()
    (place / "wandb/sdk/lib/config_util.py").write_text("class ConfigError(Exception): pass\n")
    (place / "tensorboardX/__init__.py").write_text(BOARD)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("STAND_IN", str(tmp_path / "calls"))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("wandb", "tensorboardX")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # the real one asks for TensorBoard
    yield tmp_path / "calls"
    for name in [name for name in sys.modules if name.partition(".")[0] in ("wandb", "tensorboardX")]:
        sys.modules.pop(name)


def calls(file: Path) -> list[list[Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


TRAINING = {"report_to": ["wandb", "tensorboard"], "logging_steps": 1, "bf16": False, "per_device_train_batch_size": 4}


def train(base: Path, out: Path, stage: str, tasks: list[str]) -> None:
    rows = [encode(row, tiny.tokenizer()) for row in tiny.rows("upper", 8, 0)]
    with trackers.tracking(TRAINING, out, stage, tasks, resumed=False) as training:
        fine_tune(base, rows, out / "stages" / stage, TrainSpec(training, 2, 0, tuple(tasks)))


def test_each_training_is_a_run_of_its_own_in_one_group_and_the_scores_are_another(
    stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, tags and steps as the services get them; TensorBoard's files stay in the run folder."""
    import wandb
    from trl.trainer import base_trainer

    monkeypatch.setattr(base_trainer, "wandb", wandb, raising=False)  # TRL imports it at its own import
    out, base = tmp_path / "mine", tiny.base(tmp_path / "base")
    before = dict(os.environ)
    train(base, out, "01-probe/maths", ["maths"])
    train(base, out, "04-backbone/1", ["maths", "code"])
    place = RunLayout(out)
    place.report.write_text("<p>page")
    scores = {
        "base": {"maths": {"metric": "loss", "score": 2.5}},
        "refine/1": {"maths": {"metric": "loss", "score": 1.5}},
    }
    trackers.track_scores(TRAINING, out, {"models": scores})
    assert dict(os.environ) == before

    noted = calls(stand_ins)
    assert [call[1:] for call in noted if call[0] == "init"] == [
        ["huggingface", "mine/01-probe/maths", "mine", "01-probe", "cpift,maths"],
        ["huggingface", "mine/04-backbone/1", "mine", "04-backbone", "cpift,maths,code"],
        ["huggingface", "mine/scores", "mine", "scores", None],
    ]
    assert [call[0] for call in noted if call[0] != "log"] == ["init", "finish"] * 3
    runs: list[list[int]] = []
    for call in noted:
        if call[0] == "init":
            runs.append([])
        elif call[0] == "log" and "train/global_step" in call[1]:
            runs[-1].append(call[1]["train/global_step"])
    assert [sorted(set(steps)) for steps in runs] == [[1, 2], [1, 2], []]
    assert all(steps == sorted(steps) for steps in runs), "no step goes back"
    last = [call[1] for call in noted if call[0] == "log"][-2:]
    assert last[0]["scores/refine/1/maths"] == 1.5
    assert last[0]["scores"]["table"][0] == ["base", "maths", "loss", 2.5]
    assert last[1] == {"report": {"page": 7}}

    events = {
        f.parent.relative_to(place.tensorboard).as_posix(): f.read_text() for f in place.tensorboard.rglob("events")
    }
    assert set(events) == {"01-probe/maths", "04-backbone/1", "scores"}
    losses = [line.split() for line in events["01-probe/maths"].splitlines() if line.startswith("train/loss ")]
    assert [int(step) for _, _, step in losses] == [1, 2]
    assert "scores/refine/1/maths 1.5 0" in events["scores"]
    assert not list(out.glob("stages/**/events"))


def test_a_run_that_is_open_already_is_used_and_stays_open(stand_ins: Path, tmp_path: Path) -> None:
    """As the Trainer has it: someone's own script has called wandb.init."""
    import wandb

    wandb.init(project="own", name="theirs")
    with trackers.tracking(TRAINING, tmp_path / "mine", "01-probe/a", ["a"], resumed=True):
        pass
    trackers.track_scores({"report_to": "wandb"}, tmp_path, {"models": {"m": {"t": {"metric": "loss", "score": 1.0}}}})
    assert wandb.run is not None
    assert [call[0] for call in calls(stand_ins)] == ["init", "log"]


def test_a_training_that_fails_ends_its_run_as_failed(stand_ins: Path, tmp_path: Path) -> None:
    import wandb

    def fail() -> None:
        with trackers.tracking(TRAINING, tmp_path, "01-probe/a", ["a"], resumed=True):
            wandb.init(name="x")
            raise CpiftError("diverged")

    with pytest.raises(CpiftError, match="diverged"):
        fail()
    assert calls(stand_ins)[-1] == ["finish", 1]


def test_files_of_an_earlier_training_go_unless_it_is_resumed(stand_ins: Path, tmp_path: Path) -> None:
    """Or its steps would begin anew behind the last ones."""
    old = RunLayout(tmp_path).tensorboard / "01-probe/a/events"
    for resumed in (True, False):
        old.parent.mkdir(parents=True, exist_ok=True)
        old.touch()
        with trackers.tracking(TRAINING, tmp_path, "01-probe/a", ["a"], resumed=resumed):
            assert old.exists() == resumed


def test_nothing_is_removed_from_a_folder_that_runs_share(
    stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(shared))
    others = [shared / "01-probe/a/events", shared / "mine/01-probe/a/events"]
    for file in others:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    with trackers.tracking(TRAINING, tmp_path / "mine", "01-probe/a", ["a"], resumed=False):
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(shared / "mine/01-probe/a")
        assert all(file.exists() for file in others)


def test_without_a_service_nothing_is_set(tmp_path: Path) -> None:
    """The default; and the recipe's own name is the run's."""
    before = dict(os.environ)
    with trackers.tracking({"report_to": "none"}, tmp_path, "01-probe/a", ["a"], resumed=False) as training:
        assert dict(os.environ) == before
        assert training == {"report_to": "none"}
    assert trackers.run_name({"run_name": "x"}, tmp_path) == "x"
    assert trackers.services({"report_to": ["none"]}) == []
