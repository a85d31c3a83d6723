"""The examples of docs/cluster.md: shell and YAML that can be read, commands and options that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from cpift.cli import main as cli

PAGE = (Path(__file__).parents[1] / "docs/cluster.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.S | re.M)


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind in ("sh", "bash")])
def test_shell(text: str) -> None:
    """bash reads it without a word."""
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_yaml() -> None:
    """One RayJob, whose pods mount the volume where the entrypoint looks."""
    (text,) = [text for kind, text in BLOCKS if kind == "yaml"]
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (mount,) = pod["containers"][0]["volumeMounts"]
        assert mount["name"] in [volume["name"] for volume in pod["volumes"]]
        assert f"--out {mount['mountPath']}/" in job["spec"]["entrypoint"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_commands() -> None:
    """Each option of a cpift command on the page is one that it has."""
    text = PAGE.replace("\\\n", " ")
    found = re.findall(r"\bcpift(?:\.cli)? ((?:run|compare) .*)$", text, re.M)
    assert len(found) >= 8
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    for line in found:
        name, *words = shlex.split(line.partition("`")[0].partition("#")[0])
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
