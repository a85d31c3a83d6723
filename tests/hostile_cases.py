"""The cases of ``tests/hostile/``: laid out in a folder, and run in a process with limits. See its README."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

import preloaded
import tiny
import yaml

FOLDER = Path(__file__).parent / "hostile"
MEMORY, SECONDS = 2**30, 60  # beyond what the libraries take; a start under load included


def cases() -> dict[str, dict[str, Any]]:
    """All cases by file and name."""
    found = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        for name, case in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            found[f"{file.stem}: {name}"] = case
    return found


def lay_out(case: dict[str, Any], place: Path, sound: Path) -> dict[str, list[str]]:
    """Copy what is sound to ``place``, spoil it as the case says; the commands to try by name."""
    shutil.copytree(sound, place)
    data = yaml.safe_load((place / "recipe.yaml").read_text())
    kind = case["kind"]
    where = place
    if kind == "checkpoint":
        where = place / ("base" if case.get("base") else "other")
        if case.get("model"):
            data["model"] = "other"
    elif kind == "data":
        data["tasks"]["upper"]["train"] = next(iter(case["files"]))
    for key, value in case.get("set", {}).items():
        *parents, last = key.split(".")
        part = data
        for parent in parents:
            part = part[parent]
        part[last] = value
    (place / "recipe.yaml").write_text(yaml.safe_dump(data, allow_unicode=False), encoding="utf-8")
    for name, content in case.get("files", {}).items():
        _write(where / name, content)
    out = str(place / "out")
    recipe = [str(place / "recipe.yaml")]
    pair = ["--base", str(place / "base"), "--tuned", f"a={place / 'other'}"]
    region = str(place / "a.safetensors")
    run = {"run": ["run", *recipe, "--out", out], "plan": ["plan", *recipe]}
    commands: dict[str, dict[str, list[str]]] = {
        "recipe": run,
        "data": run,
        "checkpoint": {
            "identify": ["identify", *pair, "--out", out],
            "fuse": ["fuse", *pair, "--out", out],
            **(run if case.get("model") else {}),
        },
        "region": {
            "group": ["group", region, str(place / "b.safetensors"), "--out", out],
            "fuse": ["fuse", *pair, "--region", f"a={region}", "--out", out],
        },
    }
    only = case.get("only", commands[kind])
    return {name: arguments for name, arguments in commands[kind].items() if name in only}


def _write(path: Path, content: Any) -> None:
    if path.is_symlink() or path.exists():
        if isinstance(content, dict) and "patch" in content:
            path.write_text(json.dumps({**json.loads(path.read_text()), **content["patch"]}))
            return
        path.unlink()
    if not isinstance(content, dict):
        path.write_text(content, encoding="utf-8")
    elif "text" in content:
        path.write_bytes(_text(content))
    elif "base64" in content:
        path.write_bytes(base64.b64decode(content["base64"]))
    elif "link" in content:
        path.symlink_to(content["link"])
    elif "fifo" in content:
        os.mkfifo(path)
    elif "size" in content:
        with path.open("wb") as file:
            file.truncate(content["size"])
    elif "header" in content:
        _safetensors(path, content)
    else:
        assert content == {"gone": True}, content


def _text(content: dict[str, Any]) -> bytes:
    return (content["text"] * content.get("times", 1) + content.get("tail", "")).encode()


def _safetensors(path: Path, content: dict[str, Any]) -> None:
    """Header as given, the length it claims, and zero bytes after it that take no room."""
    head = content["header"]
    if isinstance(head, dict):
        for key, value in head.get("__metadata__", {}).items() if isinstance(head.get("__metadata__"), dict) else ():
            if isinstance(value, dict):
                head["__metadata__"][key] = _text(value).decode()
        head = _text(head) if "text" in head else json.dumps(head).encode()
    else:
        head = head.encode()
    with path.open("wb") as file:
        file.write((content.get("length", len(head)) % 2**64).to_bytes(8, "little") + head)
        file.truncate(file.tell() + content.get("data", 0))


def make_sound(place: Path) -> Path:
    """A base, a checkpoint tuned from it, two regions, rows and a recipe, all of them sound."""
    from cpift.method.identify import identify

    data = tiny.recipe(place, ("reverse", "upper"))
    data["model"] = "base"
    for name, task in data["tasks"].items():
        data["tasks"][name] = {part: Path(file).name for part, file in task.items()}
    (place / "recipe.yaml").write_text(yaml.safe_dump(data))
    tiny.base(place / "other", seed=1)
    region = identify(place / "base", {"a": place / "other"})["a"]
    for name in ("a", "b"):
        region.save(place / f"{name}.safetensors")
    return place


def run_limited(arguments: list[str], place: Path, said: Path) -> tuple[int, str]:
    """Run the command line in a fresh process with limits; exit code, and what it said on both streams."""
    process = preloaded.start(arguments, said, place, MEMORY, SECONDS)
    process.join(2 * SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode or 0, said.read_text(encoding="utf-8", errors="replace")
