"""The wheel in environments of its own, made by pip: plain ones, and one with the versions that other trainers pin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from test_extras import WORK, calls_on_checkpoints

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[1]
# More interpreters, such as a 3.12 and a 3.13: their torch from PyPI brings CUDA, gigabytes.
PYTHONS = [sys.executable, *filter(None, os.environ.get("CPIFT_PYTHONS", "").split(os.pathsep))]
PINS = ["trl==0.23.*", "transformers==4.57.*", "pytest", "pytest-timeout", "hypothesis"]


def environment(place: Path, *packages: str, python: str = sys.executable) -> Path:
    """An environment with these packages; its interpreter. Skips the test where pip cannot get them."""
    if python == sys.executable:
        venv.create(place, with_pip=True)
    else:
        subprocess.run([python, "-m", "venv", str(place)], check=True)
    made = place / "bin/python"
    command = [str(made), "-m", "pip", "install", "--quiet", "--no-compile", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot install {' '.join(packages)}: {done.stderr[-300:]}")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and sdist, built and checked as an upload to PyPI would be; the wheel has templates and the licence."""
    place = tmp_path_factory.mktemp("built")
    source = place / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "scratch", "runs", "__pycache__"))
    python = environment(place / "tools", "build", "twine", "hatchling")
    build = [str(python), "-m", "build", "--no-isolation", "--outdir", str(place / "dist"), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    files = sorted((place / "dist").iterdir())
    subprocess.run([str(python), "-m", "twine", "check", "--strict", *map(str, files)], check=True)
    assert [file.suffix for file in files] == [".whl", ".gz"]
    return files[0]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_wheel_works_alone(wheel: Path, tmp_path: Path, python: str) -> None:
    """Nothing but what pip brings with it; the same work as without extras in the short test."""
    made = environment(tmp_path / "env", "torch==2.13.0", str(wheel), python=python)
    calls = calls_on_checkpoints(tmp_path)
    done = subprocess.run(
        [str(made), "-c", WORK, json.dumps(calls)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["counts"], result["still"]) == ([6, 6], [0, 7])
    assert [result[name] for name in ("diff", "identify", "group", "fuse", "plan", "hub")] == [0, 0, 0, 0, 2, 2]


def test_regions_are_frozen_beside_the_versions_that_other_trainers_pin(wheel: Path, tmp_path: Path) -> None:
    """unsloth's and LLaMA-Factory's transformers and TRL: pip leaves them as they are, and the freezing tests pass."""
    python = environment(tmp_path / "env", "torch==2.13.0", *PINS, str(wheel))
    shown = subprocess.run(
        [str(python), "-c", "import transformers, trl; print(transformers.__version__, trl.__version__)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.startswith("4.57")
    files = [str(ROOT / f"tests/test_freezing{part}.py") for part in ("", "_details", "_names")]
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(("extra", "brought"), [("train", {"transformers", "trl"}), ("adapters", {"peft", "trl"})])
def test_the_extras_of_the_readme_resolve(wheel: Path, tmp_path: Path, extra: str, brought: set[str]) -> None:
    """pip finds versions that fit together, and warns of nothing. Its plan: nothing is installed."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
    done = subprocess.run(
        [*command, "--report", str(report), f"{wheel}[{extra}]"], capture_output=True, text=True, check=False
    )
    if "No matching distribution found" in done.stderr and "cpift" not in done.stderr.partition("No matching")[2]:
        pytest.skip(f"the index lacks a package: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    assert "does not provide the extra" not in done.stderr
    chosen = {item["metadata"]["name"].lower() for item in json.loads(report.read_text())["install"]}
    assert brought | {"cpift", "torch", "numpy"} <= chosen
