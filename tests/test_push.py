"""``cpift push`` against a stand-in of the hub's API that keeps what it is sent, with the real API's arguments."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import tiny_run
from huggingface_hub import ModelCard
from test_hub import call
from typer.testing import CliRunner

from cpift.cli import main as cli
from cpift.errors import CpiftError
from cpift.files.layout import RunLayout
from cpift.method.region import Region
from cpift.runs.push import files_to_push, push

REAL = huggingface_hub.HfApi


class Api:
    """Repositories as folders, a branch each; ``failure`` is raised once, after the first file."""

    home: Path
    failure: Exception | None = None
    asked: list[tuple[str, dict[str, Any]]]

    def _note(self, name: str, *given: Any, **named: Any) -> dict[str, Any]:
        bound = dict(inspect.signature(getattr(REAL, name)).bind(self, *given, **named).arguments)
        self.asked.append((name, bound))
        return bound

    def create_repo(self, *given: Any, **named: Any) -> str:
        return f"https://hub/{self._note('create_repo', *given, **named)['repo_id']}"

    def create_branch(self, *given: Any, **named: Any) -> None:
        self._note("create_branch", *given, **named)

    def upload_folder(self, **named: Any) -> None:
        asked = self._note("upload_folder", **named)
        target = self.home / asked["repo_id"] / (asked["revision"] or "main")
        for file in sorted(Path(asked["folder_path"]).rglob("*")):
            if file.is_file():
                (target / file.relative_to(asked["folder_path"])).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / file.relative_to(asked["folder_path"]))
                if self.failure is not None:
                    failure, type(self).failure = self.failure, None
                    raise failure


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Api]:
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "home", tmp_path / "hub", raising=False)
    monkeypatch.setattr(Api, "asked", [], raising=False)
    monkeypatch.setattr(Api, "failure", None)
    return Api


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tiny_run.one_thread():
        yield tiny_run.finished_run(tmp_path_factory)


def contents(place: Path) -> dict[str, bytes]:
    return {file.relative_to(place).as_posix(): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def test_a_run_is_pushed_with_its_card_its_regions_and_the_report(api: type[Api], whole: Path) -> None:
    """Every file of model/, byte for byte; the repository is a model that loads, and that ``cpift add`` would protect."""
    said = call("push", whole, "org/mine", "--private")
    assert "https://hub/org/mine" in said
    there, place = contents(api.home / "org/mine/main"), RunLayout(whole)
    assert {name: there[name] for name in contents(place.model)} == contents(place.model)
    assert there["report.html"] == place.report.read_bytes()
    assert there["scores.json"] == place.scores.read_bytes()
    regions = {name for name in there if name.startswith("cpift_regions/")}
    assert regions == {f"cpift_regions/{task}.region.safetensors" for task in ("reverse", "upper", "double")}
    assert there["cpift_regions/upper.region.safetensors"] == place.region("upper").read_bytes()
    assert set(there) == {*contents(place.model), "report.html", "scores.json", *regions}
    assert ModelCard(there["README.md"].decode()).data.library_name == "transformers"
    assert api.asked[0][1]["private"] is True


def test_cut_off_and_called_again_it_resumes_on_a_branch(api: type[Api], whole: Path) -> None:
    """The line says what to do; the second call sends the same files to the same place."""
    api.failure = ConnectionError("the line is down")
    command = ["push", str(whole), "org/mine", "--revision", "trial", "--no-report"]
    with pytest.raises(CpiftError, match=r"org/mine: could not be uploaded \(the line is down\); run the same command"):
        CliRunner().invoke(cli.app, command, catch_exceptions=False)
    place = api.home / "org/mine/trial"
    assert len(contents(place)) == 1
    call(*command)
    assert set(contents(place)) == set(files_to_push(whole, report=False))
    assert [asked["branch"] for name, asked in api.asked if name == "create_branch"] == ["trial", "trial"]
    assert "report.html" not in contents(place)


def test_a_model_that_carries_regions_keeps_these_alone(whole: Path, tmp_path: Path) -> None:
    """What ``cpift add`` has put beside the weights is what it protects next time; hidden files stay here."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    carried = RunLayout(out).model / "cpift_regions/old.region.safetensors"
    carried.parent.mkdir()
    Region({"model.norm.weight": np.array([3], np.int32)}, 10).save(carried)
    (RunLayout(out).model / ".cache").mkdir()
    (RunLayout(out).model / ".cache/x").touch()
    names = set(files_to_push(out))
    assert {name for name in names if name.startswith("cpift_regions")} == {"cpift_regions/old.region.safetensors"}
    assert not [name for name in names if name.startswith(".")]
    assert set(files_to_push(RunLayout(out).model)) == names - {"report.html", "scores.json"}


def test_what_cannot_be_pushed_ends_in_one_line(api: type[Api], whole: Path, tmp_path: Path) -> None:
    """Before anything is sent: no run, an unfinished one, a folder without weights, a name that is none."""
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/recipe.yaml").touch()
    (tmp_path / "empty").mkdir()
    for folder, words in (("nowhere", "is no folder"), ("begun", "has no model/ yet"), ("empty", "empty")):
        with pytest.raises(CpiftError, match=words):
            files_to_push(tmp_path / folder)
    with pytest.raises(CpiftError, match="mine: is no repository of the hub; write owner/name"):
        push({}, "mine")
    assert not api.asked


@pytest.mark.parametrize("status", [401, 403])
def test_without_a_right_to_write_the_line_says_to_log_in(api: type[Api], tmp_path: Path, status: int) -> None:
    refused = RuntimeError("no")
    refused.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    api.failure = refused
    (tmp_path / "README.md").touch()
    with pytest.raises(CpiftError, match=r"org/x: the hub refuses .*hf auth login, or set HF_TOKEN"):
        push({"README.md": tmp_path / "README.md"}, "org/x")
