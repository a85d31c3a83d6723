"""An installation without extras: what works there, and the one line where a package is missing or too old."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.numpy import save_file

import cpift
from cpift import extras
from cpift.checkpoint.hub import locate
from cpift.cli import main as cli
from cpift.errors import CpiftError

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# A process that finds no module but those named, its own and Python's: as where nothing else is installed.
ONLY = """
import json, sys
from importlib.machinery import PathFinder

allowed = json.loads(sys.argv[2])

class Some:
    @staticmethod
    def find_spec(name, path=None, target=None):
        root = name.partition(".")[0]
        known = root in allowed or root in sys.stdlib_module_names or root.startswith("_")
        return PathFinder.find_spec(name, path, target) if known else None

sys.meta_path = [finder for finder in sys.meta_path if finder is not PathFinder] + [Some]
"""
WORK = """
import json, sys
import numpy as np
import torch
import cpift

calls = json.loads(sys.argv[1])
base, *tuned = calls.pop("models")
tuned = {"a": tuned[0], "b": tuned[1]}
regions = cpift.identify(base, tuned)
grouping = cpift.group(regions)
difference = cpift.diff(base, tuned)
layer = torch.nn.Linear(30, 20, bias=False)
before = layer.weight.detach().clone()
region = cpift.Region({"weight": np.array([0, 7], np.int32)}, 600)

class Descent:  # torch.optim would import torch's compiler: seconds
    def step(self):
        layer.weight.data -= layer.weight.grad

optimizer = Descent()
with cpift.freeze(layer, region, optimizer):
    layer(torch.ones(30)).sum().backward()
    optimizer.step()
moved = (layer.weight.detach() != before).flatten()
made = {
    "counts": [regions[name].count for name in tuned], "overlap": grouping.jaccard[0][1],
    "pairs": len(difference.pairs), "still": torch.nonzero(~moved).flatten().tolist(),
}

from cpift.cli.main import main

for name, arguments in calls.items():
    sys.argv = ["cpift", *arguments]
    try:
        main()
        made[name] = 0
    except SystemExit as end:
        made[name] = end.code
for name in ("run", "FreezeCallback"):
    try:
        getattr(cpift, name)
    except ImportError as error:
        made[name] = str(error)
print(json.dumps(made))
"""


def installed_with(needed: list[str]) -> set[str]:
    """Distributions that pip installs for these requirements, as far as they are installed here."""
    found, waiting = set[str](), [Requirement(text) for text in needed]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        try:
            waiting += [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:  # another system's
            continue
        found.add(name)
    return found


def calls_on_checkpoints(tmp_path: Path) -> dict[str, list[str]]:
    """A base and two fine-tuned checkpoints under "models", and command lines by name: four that work, two that do not."""
    weights = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
    models = []
    for i, factor in enumerate((1.0, 1.1, 1.2)):
        models.append(str(tmp_path / f"m{i}"))
        Path(models[-1]).mkdir()
        save_file({"a.weight": weights * np.float32(factor)}, f"{models[-1]}/model.safetensors")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    (tmp_path / "recipe.yaml").write_text("model: org/x\ntasks: {t: {train: a.jsonl, eval: 2}}\n")
    tuned = [f"--tuned=a={models[1]}", f"--tuned=b={models[2]}"]
    return {
        "models": models,
        "diff": ["diff", *models, "--html", str(tmp_path / "diff.html")],
        "identify": ["identify", "--base", models[0], *tuned, "--out", str(tmp_path / "regions")],
        "group": ["group", str(tmp_path / "regions"), "--out", str(tmp_path / "groups.json")],
        "fuse": ["fuse", "--base", models[0], *tuned, "--out", str(tmp_path / "fused")],
        "plan": ["plan", str(tmp_path / "recipe.yaml")],
        "hub": ["fuse", "--base", "org/base", *tuned, "--out", str(tmp_path / "none")],
    }


def test_without_extras_checkpoints_are_compared_and_fused_and_regions_frozen(tmp_path: Path) -> None:
    """With nothing that pyproject.toml does not ask for; what needs more ends in one line that names the extra."""
    here = installed_with(PROJECT["dependencies"])
    assert not {"transformers", "trl", "datasets", "accelerate", "peft", "scipy", "huggingface-hub"} & here
    names = packages_distributions()
    allowed = [root for root, of in names.items() if here & {canonicalize_name(name) for name in of}]
    calls = calls_on_checkpoints(tmp_path)
    command = [sys.executable, "-c", ONLY + WORK, json.dumps(calls), json.dumps([*allowed, "cpift"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert (made["counts"], made["overlap"], made["pairs"], made["still"]) == ([6, 6], 1.0, 1, [0, 7])
    assert [made[name] for name in ("diff", "identify", "group", "fuse", "plan", "hub")] == [0, 0, 0, 0, 2, 2]
    assert (tmp_path / "fused/model.safetensors").is_file()
    assert 'pip install "cpift[train]"' in made["run"]
    assert 'pip install "cpift[train]"' in made["FreezeCallback"]
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert re.fullmatch(r'cpift: needs the package \w+, which is not installed; pip install "cpift\[train\]"', lines[0])
    assert "org/base is no local folder" in lines[1]
    assert lines[1].endswith('needs the package huggingface_hub, which is not installed; pip install "cpift[hub]"')


def test_each_package_of_the_table_is_in_the_extra_that_the_line_names() -> None:
    """What ``pip install`` of that extra brings, with the extras that it includes."""
    declared = PROJECT["optional-dependencies"]
    names = packages_distributions()
    for extra, packages in extras.EXTRAS.items():
        asked, waiting = set[str](), [extra]
        while waiting:
            for text in declared[waiting.pop()]:
                one = Requirement(text)
                waiting += one.extras if one.name == "cpift" else []
                asked.add(canonicalize_name(one.name))
        brought = asked | {"pyarrow", "tree-sitter"}  # of datasets, and of codebleu
        for package in packages:
            assert {canonicalize_name(name) for name in names.get(package, [package])} & brought, (extra, package)


def test_every_extra_that_a_page_names_exists() -> None:
    """Where the package is published, pip would only warn of one that does not, and install cpift alone."""
    root, known = Path(__file__).parents[1], set(PROJECT["optional-dependencies"])
    pages = [root / "README.md", root / "CONTRIBUTING.md", root / "Dockerfile", *root.glob("docs/**/*.md")]
    named = {
        (page.relative_to(root).as_posix(), extra.strip())
        for page in [*pages, *root.glob("src/**/*.py"), *root.glob("examples/*")]
        for extras in re.findall(r"cpift\[([a-z, ]+)\]", page.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    }
    assert {extra for page, extra in named if page == "README.md"} == {"train", "adapters"}
    assert not {(page, extra) for page, extra in named if extra not in known}
    listed = set(re.findall(r"^\| `cpift\[(\w+)\]`", (root / "docs/install.md").read_text(encoding="utf-8"), re.M))
    assert listed == known - {"demo", "dev", "docs", "browser"}  # these serve a checkout


def test_a_package_of_another_version_is_named_with_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As beside tools that pin trl 0.23: the import of a name that it does not have."""
    (tmp_path / "wants_more.py").write_text("from trl import ATrainerOfTomorrow\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        extras.MissingPackage, match=r'needs another version of trl than \d.*pip install "cpift\[train\]"'
    ):
        extras.load("wants_more")


def test_what_no_extra_has_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours, or of someone's own module, keeps its traceback."""
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        extras.load("nowhere.at_all")

    def broken() -> None:
        raise ModuleNotFoundError("No module named 'nowhere'", name="nowhere")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        cli.main()


def test_a_model_of_the_hub_asks_for_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CpiftError, match="org/x is no local folder, and a download from the hub needs"):
        locate("org/x")
    assert cpift.extras is extras
