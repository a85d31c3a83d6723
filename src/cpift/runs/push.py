"""``cpift push``: a finished model to a repository of the hub, with its card, its regions and the report."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cpift.checkpoint.library import library
from cpift.checkpoint.reader import open_checkpoint
from cpift.errors import CpiftError
from cpift.files import layout
from cpift.files.layout import Kind, RunLayout
from cpift.runs.stages.arrivals import carried_regions

_LOGIN = "log in with hf auth login, or set HF_TOKEN, with a token that may write there"


def files_to_push(folder: Path, report: bool = True) -> dict[str, Path]:
    """What a repository gets of a run, or of a model's folder.

    Args:
        folder: a run folder with its ``model/``, or a checkpoint's folder.
        report: of a run, ``report.html`` and ``scores.json`` as well.

    Returns:
        Path in the repository to file. Core regions of a run lie in ``cpift_regions``, where ``cpift add`` finds what to
        protect, unless the model carries regions already.

    Raises:
        CpiftError: no run, an unfinished one, or no model.
    """
    place = RunLayout(folder)
    is_run = place.recipe.is_file()
    if is_run and not place.model.is_dir():
        raise CpiftError(f"{folder}: the run has no model/ yet; run it to its end with cpift run, then push")
    if not is_run and not folder.is_dir():
        raise CpiftError(f"{folder}: is no folder of a run or of a model")
    model = place.model if is_run else folder
    open_checkpoint(model)  # says what is wrong with it, before anything is sent
    files = {
        file.relative_to(model).as_posix(): file
        for file in sorted(model.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(model).parts)
    }
    if is_run and not carried_regions(model):
        files |= _regions(place)
    if is_run and report:
        files |= {file.name: file for file in (place.report, place.scores) if file.is_file()}
    return files


def _regions(place: RunLayout) -> dict[str, Path]:
    """The core region of each task of a run that trains from probes."""
    parsed = [layout.parse(stage) for stage in place.finished()]
    tasks = [name.task for name in parsed if name is not None and name.kind is Kind.REGION]
    found = {task: place.stage(layout.region(task)) / layout.REGION_FILE for task in tasks}
    return {
        f"{layout.CARRIED_REGIONS}/{task}.region.safetensors": file for task, file in found.items() if file.is_file()
    }


def push(files: Mapping[str, Path], repo: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload files to a repository of the hub, which is made where it is not there; called again, it resumes.

    The hub's library uploads what is not there yet: a file that was sent before is not sent again.

    Args:
        files: path in the repository to file.
        repo: ``owner/name``.
        private: of a new repository.
        revision: a branch, made where it is not there; None: main.

    Returns:
        The address of the repository.

    Raises:
        CpiftError: no such name, no login, no right to write, no connection.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise CpiftError(f"{repo}: is no repository of the hub; write owner/name")
    hub = library("huggingface_hub").HfApi()
    with tempfile.TemporaryDirectory(prefix="cpift-push-") as scratch:
        for name, file in files.items():  # the library takes a folder; links cost no copy
            link = Path(scratch) / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        try:
            url = hub.create_repo(repo, private=private or None, exist_ok=True)
            if revision is not None:
                hub.create_branch(repo, branch=revision, exist_ok=True)
            hub.upload_folder(
                repo_id=repo, folder_path=scratch, revision=revision, commit_message="Upload model by cpift push"
            )
        except Exception as error:  # the library, and what it sends by, have many kinds
            raise CpiftError(f"{repo}: {_reason(error)}") from error
    return str(url)


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    text = " ".join(str(error).split())[:300]
    if type(error).__name__ == "LocalTokenNotFoundError" or status in (401, 403):
        return f"the hub refuses ({text}); {_LOGIN}"
    return f"could not be uploaded ({text}); run the same command again to resume"
