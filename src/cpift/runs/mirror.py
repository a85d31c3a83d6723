"""A copy of the run folder at a URL that fsspec knows, so that a lost disk costs no finished stage.

A stage's files are copied first and its ``stage.json`` last: a stage that was cut off in the copying is none. What comes
back is hashed before it counts. Nothing is deleted there; a stage that is made anew takes the place of the old one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from fsspec.core import url_to_fs

from cpift.console.reporter import Reporter
from cpift.errors import CpiftError, is_disk_full
from cpift.files import manifest
from cpift.files.layout import RunLayout
from cpift.recipe.recipe import Recipe
from cpift.recipe.yaml import read_yaml


class Mirror:
    """The copy at ``url`` of the run folder ``out``. Making one reads what is there, and writes nothing.

    Raises:
        CpiftError: the protocol is unknown or lacks its package; the place cannot be read, lies within ``out``, or
            holds another recipe's run.
    """

    def __init__(self, url: str, recipe: Recipe, out: Path, reporter: Reporter | None = None) -> None:
        self._out, self._recipe, self._reporter = out, recipe, reporter or Reporter()
        self._layout = RunLayout(out)
        self._beside = self._layout.state, self._layout.log  # a run on another disk resumes with these
        self._shown = re.sub(r"//[^/@]*@", "//", url)  # without a password: messages end in logs
        self._waiting: dict[str, None] = {}  # stages to copy, in order
        self._why = ""  # the last copy failed
        try:
            self._fs, root = url_to_fs(url)
        except ImportError as error:  # it says which package to install
            raise CpiftError(f"--mirror {self._shown}: {_words(error)}") from error
        except ValueError as error:
            raise CpiftError(f"--mirror {self._shown}: {_words(error)}; write s3://…, gs://… or file:///…") from error
        except Exception as error:  # each protocol has its own kinds
            raise self._failed("cannot be opened", error) from error
        self._root = str(root).rstrip("/")
        local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        if local and Path(root).resolve().is_relative_to(out.resolve()):
            raise CpiftError(
                f"--mirror {self._shown}: lies within {out} and would be lost with it; choose another place"
            )
        try:
            self._fs.invalidate_cache()
            self.held = self._stages()
            before = self._read(self._layout.recipe)
        except Exception as error:
            raise self._failed("cannot be read", error) from error
        if what := _difference(before, recipe):
            raise CpiftError(f"--mirror {self._shown}: holds another recipe's run (its {what} differ); choose another")

    def begin(self) -> None:
        """Leave the recipe there, which shows that writing works; take back the run's state and log, where they lack."""
        try:
            self._write(self._layout.recipe, self._recipe.dump().encode())
            beside = {path: self._read(path) for path in self._beside if not path.exists()}
        except Exception as error:
            raise self._failed("cannot be written", error) from error
        for path, data in beside.items():
            if data and (path != self._layout.state or _is_json(data)):
                manifest.write_whole(path, data.decode(errors="replace"))

    def bring(self, name: str, key: str) -> bool:
        """Take a stage back; False where it is not there with this key, or is damaged, which a warning tells."""
        made = self.held.get(name)
        if made is None or made.key != key:
            return False
        folder = self._layout.stage(name)
        partial = manifest.partial_of(folder)
        shutil.rmtree(partial, ignore_errors=True)
        for file, expected in made.outputs.items():
            (partial / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                self._fs.get_file(self._remote(folder / file), str(partial / file))
                whole = manifest.file_hash(partial / file) == expected
            except FileNotFoundError:
                whole = False
            except Exception as error:
                if is_disk_full(error):
                    raise CpiftError(f"{name}: the disk is full; make room and run again") from error
                raise self._failed(f"{name} cannot be read", error) from error
            if not whole:  # stopping would cost the night, making it again costs one stage
                shutil.rmtree(partial)
                self._reporter.warning(f"{name}: {file} at {self._shown} is damaged or gone; the stage is made anew")
                return False
        manifest.finish(folder, key, made.settings, made.needs, made.facts)
        self._reporter.message(f"{name} is brought back from {self._shown}")
        return True

    def store(self, names: Iterable[str]) -> None:
        """Copy stages that are not there yet; a failure is reported, and the copy is tried again with the next stage."""
        self._waiting |= dict.fromkeys(names)
        try:
            for name in list(self._waiting):
                made = manifest.read(self._layout.stage(name))
                if made is not None and made != self.held.get(name):
                    self._put_stage(name, made)
                del self._waiting[name]
            self._why = ""
        except Exception as error:
            self._why = _words(error)
            self._reporter.warning(f"{name} was not copied to {self._shown} ({self._why}); it is tried again later")

    def finish(self, model: bool) -> None:
        """At a run's end, copy what still waits and what lies beside the stages; ``model``: that, too, and the scores.

        Raises:
            CpiftError: the copy is not complete, though the run folder is.
        """
        self.store(())
        place = self._layout
        paths = sorted([*place.model.rglob("*"), *place.patches]) if model else []
        try:
            for path in (
                [*paths, place.published, place.patched, place.plan, place.report, *self._beside, place.scores]
                if not self._why
                else []
            ):
                if path.is_file():
                    self._put(path)
        except Exception as error:
            self._why = _words(error)
        if self._why:
            raise CpiftError(
                f"--mirror {self._shown}: is not complete ({self._why}), {self._out} is; run again to copy"
            )

    def _stages(self) -> dict[str, manifest.Made]:
        found = {}
        for remote in self._fs.find(self._remote(self._layout.stages)):
            path = self._out / str(remote).removeprefix(f"{self._root}/")
            if path.name == manifest.FILE:
                made = manifest.parse(self._read(path))
                if made is not None and isinstance(made.outputs, dict) and all(map(_is_inside, made.outputs)):
                    found[self._layout.name_of(path.parent)] = made
        return found

    def _put_stage(self, name: str, made: manifest.Made) -> None:
        folder = self._layout.stage(name)
        if self.held.pop(name, None) is not None:
            self._write(folder / manifest.FILE, b"{}\n")  # the old one counts no more
        for file in (*made.outputs, manifest.FILE):
            self._put(folder / file)
        self.held[name] = made
        for path in self._beside:
            if path.is_file():
                self._put(path)

    def _remote(self, path: Path) -> str:
        """Where the copy of a path of the run folder lies."""
        return f"{self._root}/{path.relative_to(self._out).as_posix()}"

    def _put(self, path: Path) -> None:
        target = self._remote(path)
        try:
            self._fs.put_file(str(path), target)
        except FileNotFoundError:  # no such folder, where the system has folders
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(path), target)

    def _write(self, path: Path, data: bytes) -> None:
        target = self._remote(path)
        self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(target, data)

    def _read(self, path: Path) -> bytes:
        """A small file; empty where it is not there."""
        try:
            return bytes(self._fs.cat_file(self._remote(path)))
        except FileNotFoundError:
            return b""

    def _failed(self, what: str, error: Exception) -> CpiftError:
        return CpiftError(
            f"--mirror {self._shown}: {what} ({_words(error)}); check the address, network and credentials"
        )


def _words(error: Exception) -> str:
    """One line, without a password."""
    return re.sub(r"//[^/@\s]*@", "//", " ".join(f"{error or type(error).__name__}".split()))[:300]


def _difference(before: bytes, recipe: Recipe) -> str:
    """What makes the recipe there another run's; a model's folder may be another one on this machine."""
    try:
        found = read_yaml(before.decode())
        model, seed, tasks = Path(found["model"]).name, found["seed"], set(found["tasks"])
    except Exception:  # none is there, or half of one
        return ""
    if model != Path(recipe.model).name or seed != recipe.seed:
        return "model" if seed == recipe.seed else "seed"
    return "" if tasks & set(recipe.tasks) else "tasks"


def _is_inside(name: object) -> bool:
    """May this file of a stage be written below the stage's folder?"""
    return isinstance(name, str) and not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def _is_json(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False
