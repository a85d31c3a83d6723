"""Models of the hub, by a stand-in for the download: which files are asked for, and what is said where it fails."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import tiny
from huggingface_hub import errors
from typer.testing import CliRunner

from cpift.checkpoint.hub import checkpoint_place, locate
from cpift.cli import main as cli
from cpift.errors import CpiftError
from cpift.method.region import Region
from cpift.recipe.recipe import Recipe
from cpift.runs.given import GivenModel
from cpift.runs.stages.arrivals import carried_regions
from cpift.runs.survey import tokenizer_of


class Hub:
    """Repositories by name and revision; a download copies what the patterns let through."""

    def __init__(self, home: Path) -> None:
        self.home, self.repositories, self.asked = home, {}, []
        self.failure: Exception | None = None

    repositories: dict[tuple[str, str | None], Path]
    asked: list[tuple[str, str | None]]

    def snapshot_download(
        self, repo_id: str, *, revision: str | None = None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        self.asked.append((repo_id, revision))
        if self.failure is not None:
            raise self.failure
        source, target = self.repositories[repo_id, revision], self.home / repo_id.replace("/", "--") / str(revision)
        for file in source.rglob("*"):
            name = file.relative_to(source).as_posix()
            wanted = any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
            if file.is_file() and wanted and not any(fnmatch.fnmatch(name, p) for p in ignore_patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / name)
        return str(target)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    made.repositories["org/base", None] = tiny.base(tmp_path / "origin")
    made.repositories["org/tuned", "v2"] = tiny.base(tmp_path / "second", seed=2)
    made.repositories["org/tuned", None] = tiny.base(tmp_path / "first", seed=1)
    return made


def test_one_copy_of_the_weights_is_fetched(hub: Hub) -> None:
    """No other format, no variant, no subfolder's weights; code only where it is allowed; the card, for the licence."""
    source = hub.repositories["org/base", None]
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "m.gguf", "onnx/model.safetensors",
                 "onnx/config.json", "original/params.json", "modeling.py", "README.md", "chat_template.jinja",
                 "model-00001-of-00002.safetensors", "tokenizer.model"):  # fmt: skip
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("x")
    place = locate("org/base")
    got = {file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()}
    assert got >= {"model.safetensors", "config.json", "tokenizer.json", "README.md", "model-00001-of-00002.safetensors",
                   "tokenizer.model", "chat_template.jinja"}  # fmt: skip
    assert not [name for name in got if "/" in name or name.endswith((".py", ".bin", ".gguf"))]
    assert not {"consolidated.safetensors", "model.fp16.safetensors"} & got
    assert (locate("org/base", trust_remote_code=True) / "modeling.py").is_file()


def test_the_regions_that_a_model_carries_are_fetched_with_it(hub: Hub) -> None:
    """What an earlier ``cpift add`` protects stays protected where the model comes from the hub."""
    carried = hub.repositories["org/base", None] / "cpift_regions/old.region.safetensors"
    carried.parent.mkdir()
    Region({"model.norm.weight": np.array([3], np.int32)}, 10).save(carried)
    (file,) = carried_regions(locate("org/base")).values()
    assert file.read_bytes() == carried.read_bytes()


def test_data_needs_no_weights(hub: Hub, tmp_path: Path) -> None:
    """``cpift data`` fetches the tokenizer and the configuration alone."""
    tiny.jsonl(tmp_path / "t.jsonl", tiny.rows("upper", 6, 0))
    (tmp_path / "r.json").write_text(json.dumps({"model": "org/base", "tasks": {"t": {"train": "t.jsonl", "eval": 2}}}))
    assert "t: 4 training rows" in call("data", tmp_path / "r.json")
    place = hub.home / "org--base" / "None"
    assert {file.name for file in place.iterdir()} >= {"config.json", "tokenizer.json"}
    assert not list(place.glob("*.safetensors"))
    assert (locate("org/base") / "model.safetensors").is_file()  # what trains fetches them


def test_an_adapter_brings_its_base(hub: Hub, tmp_path: Path) -> None:
    """As the model of a recipe; the tokenizer, which the base has, needs the weights of neither."""
    lora = tmp_path / "lora"
    lora.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "org/tuned", "revision": "v2"}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    (lora / "adapter_model.safetensors").write_bytes(b"")
    hub.repositories["org/lora", None] = lora
    recipe = Recipe.parse({"model": "org/lora", "tasks": {"t": {"train": "t.jsonl", "eval": 2}}})
    assert tokenizer_of(recipe).get_vocab()
    assert not list(hub.home.rglob("*.safetensors"))
    assert hub.asked == [("org/lora", None), ("org/tuned", "v2")]
    given = GivenModel.of(recipe)
    assert (given.path / "adapter_model.safetensors").is_file()
    assert given.beneath is not None
    assert (given.beneath / "model.safetensors").is_file()


def test_the_revision_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    """Behind the name, or as a key of the recipe; not of a local folder, nor two of them."""
    assert locate("org/tuned@v2") == locate("org/tuned", "v2")
    assert hub.asked == [("org/tuned", "v2")] * 2
    with pytest.raises(CpiftError, match="two revisions"):
        locate("org/tuned@v1", "v2")
    with pytest.raises(CpiftError, match="leave it out"):
        locate(str(tmp_path), "v2")
    tasks = {"a": {"generate": "letter_counting", "train": 4, "eval": 2}}
    assert Recipe.parse({"model": "org/tuned", "revision": "v2", "tasks": tasks}).revision == "v2"


def failure(kind: Any) -> Exception:
    made: Exception = kind.__new__(kind)
    made.args = ("the library's words",)
    return made


FAILURES: list[tuple[Any, str]] = [
    (errors.GatedRepoError, r"org/base is gated.*huggingface\.co/org/base.*hf auth login"),
    (errors.RepositoryNotFoundError, "no repository of the hub.*hf auth login"),
    (errors.RevisionNotFoundError, "has no revision v9"),
    (errors.LocalEntryNotFoundError, "cannot be fetched; without a network.*hf download org/base --local-dir DIR"),
]


@pytest.mark.parametrize(("kind", "words"), FAILURES)
def test_a_failure_has_its_remedy(hub: Hub, kind: Any, words: str) -> None:
    hub.failure = failure(kind)
    with pytest.raises(CpiftError, match=words):
        locate("org/base@v9")


@pytest.mark.parametrize("kind", [errors.RepositoryNotFoundError, errors.LocalEntryNotFoundError])
def test_a_mistyped_folder_is_no_riddle(hub: Hub, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one slash it could be the name of a repository."""
    (tmp_path / "runs/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    hub.failure = failure(kind)
    with pytest.raises(CpiftError, match=r"runs/mone is no local folder \(did you mean runs/mine\?\)"):
        locate("runs/mone")
    with pytest.raises(CpiftError, match=r"org/mine is no local folder(,| and)"):
        locate("org/mine")


def test_a_repository_without_safetensors_is_named(hub: Hub) -> None:
    (hub.repositories["org/base", None] / "model.safetensors").rename(hub.home.parent / "origin/pytorch_model.bin")
    with pytest.raises(CpiftError, match="org/base has no safetensors weights"):
        locate("org/base")


PATHS = ["./org/base", "/org/base", "~/base", "a/b/c", "base.gguf", "base", "org/base.safetensors"]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_never_asked_of_the_hub(hub: Hub, path: str) -> None:
    assert checkpoint_place(path) == Path(path)
    assert not hub.asked


def test_a_local_folder_goes_before_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(hub.repositories["org/base", None], tmp_path / "org/base@v1")
    monkeypatch.chdir(tmp_path)
    assert checkpoint_place("org/base@v1") == Path("org/base@v1") == locate("org/base@v1")
    assert not hub.asked


def call(*arguments: Any) -> str:
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_commands_take_hub_ids(hub: Hub, tmp_path: Path) -> None:
    """identify, fuse and evaluate; what they find is the same as of the local folders: no path is part of it."""
    local = tmp_path / "second"
    given = ["--base", "org/base", "--tuned=t=org/tuned@v2"]
    call("identify", *given, "--percent", 2, "--out", tmp_path / "hub")
    call("identify", "--base", tmp_path / "origin", f"--tuned=t={local}", "--percent", 2, "--out", tmp_path / "local")
    regions = [Region.load(tmp_path / where / "t.region.safetensors") for where in ("hub", "local")]
    assert regions[0].base == regions[1].base
    assert (regions[0].tuned, regions[0].threshold) == (regions[1].tuned, regions[1].threshold)
    region = f"--region=t={tmp_path / 'local/t.region.safetensors'}"
    call("fuse", *given, "--backbone", "org/tuned", region, "--out", tmp_path / "fused")
    call("fuse", "--base", tmp_path / "origin", f"--tuned=t={local}", "--backbone", tmp_path / "first", region,
         "--out", tmp_path / "same")  # fmt: skip
    weights = [(tmp_path / where / "model.safetensors").read_bytes() for where in ("fused", "same")]
    assert weights[0] == weights[1]
    tiny.jsonl(tmp_path / "t.jsonl", tiny.rows("upper", 4, 0))
    tiny.jsonl(tmp_path / "e.jsonl", tiny.rows("upper", 2, 1))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"model": "org/base", "tasks": {"t": {"train": "t.jsonl", "eval": "e.jsonl"}}}))
    call("evaluate", "org/tuned@v2", recipe, "--out", tmp_path / "scores.json")
    call("evaluate", local, recipe, "--out", tmp_path / "again.json")
    scores = [json.loads((tmp_path / name).read_text())["tasks"] for name in ("scores.json", "again.json")]
    assert scores[0] == scores[1]


def test_a_patch_comes_off_a_model_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    """Its patches are fetched with it."""
    from cpift.method.apply_patch import apply_patches, remove_patches
    from cpift.method.patch import make_patch

    origin = tmp_path / "origin"
    make_patch(origin, tmp_path / "first", tmp_path / "skill.safetensors", max_share=1)
    apply_patches(origin, [tmp_path / "skill.safetensors"], tmp_path / "patched")
    hub.repositories["org/patched", None] = tmp_path / "patched"
    remove_patches(checkpoint_place("org/patched"), ["skill"], tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (origin / "model.safetensors").read_bytes()
