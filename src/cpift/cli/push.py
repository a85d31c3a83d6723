"""``cpift push``: a model to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or the folder of a model.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; made where it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Upload to this branch; made where it is not there.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Of a run, report.html and scores.json as well.")
    ] = True,
) -> None:
    """Upload a model to the Hugging Face hub: weights, card, core regions and the report.

    Cut off and called again, it resumes. Log in first: hf auth login, or HF_TOKEN.
    """
    from cpift.console.terminal import Terminal, say, size
    from cpift.runs.push import files_to_push
    from cpift.runs.push import push as upload

    files = files_to_push(folder, report)
    if "README.md" not in files:
        Terminal().warning(f"{folder}: has no README.md, so the repository gets no model card")
    say(f"{len(files)} files, {size(sum(file.stat().st_size for file in files.values()))}")
    say(f"uploaded to {upload(files, repo, private=private, revision=revision)}")
