"""Compiled loops as machine code: numba makes it once, and later processes load it without numba.

numba takes longer to import than a model of a billion parameters takes to be read. The code of a loop is therefore kept
beside its source, and llvmlite alone puts it into memory. It is used for the same sources, versions and processor only.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import llvmlite.binding as llvm
import numpy as np
import xxhash

from cpift.cache import cache_folder

LOOPS = {
    "read_into": ("reading", "int64[:] int64[:] int64[:] int64[:] -> 1"),
    "scan": ("scan", "int64[:] int64[:] int64 int64 int64[:] uint64[:,:] int64[:] int64[:] int64[:,:] int64 -> 0"),
    "count_unchanged_rows": ("scan", "int64[:] int64[:] int64 int64 -> 1"),
    "take_in": ("selection", "uint64[:] uint64 uint64[:] int64 int64[:] -> 2"),
    "keep_best": ("selection", "uint64[:] int64[:] int64 int64 -> 1"),
    "count_keys": ("selection", "uint64[:] int64 int64[:] -> 0"),
    "unpack_best": ("selection", "uint64[:] int64[:] int64[:] int64 int64 *[:] bool[:] -> 0"),
    "count_common": ("selection", "*[:] *[:] bool[:] bool[:] -> 2"),
    "add_gram": ("fusion", "int64[:] int64[:] int64 int64[:] int64[:] int64[:] int64 float64[:,:] -> 1"),
    "add_update_gram": ("fusion", "int64[:] int64[:] int64 float64[:,:] -> 0"),
    "combine": ("fusion", "int64[:] int64[:] float64[:] *[:] -> 0"),
    "gather_core": (
        "fusion",
        "int64[:] int64[:] int64[:] int64[:] int64[:] int64 int64[:] float64[:] int64[:] int64[:] bool[:,:] "
        "float64[:,:] float32[:,:] -> 2",
    ),
    "scatter": ("fusion", "float64[:] int64[:] *[:] -> 0"),
    "all_finite": ("fusion", "*[:] -> 1"),
    "add_low_rank": (
        "low_rank",
        "*[:] float64[:,:] float64[:,:] float64[:] float64[:] float64[:] int64 *[:] -> 0",
    ),
    "as_float64": ("stored", "*[:] float64[:] -> 0"),
    "rounded": ("stored", "float64[:] *[:] -> 0"),
}
"""By name: the module, the arrays and int64 or uint64 numbers that it takes, and how many integers it returns.

``*`` is any type; the loop is compiled anew for each.
"""
_DIGEST = 16  # bytes in front of kept code: its checksum
_lock = threading.RLock()


class _Argument(NamedTuple):
    kind: np.dtype[Any] | None  # None: any
    axes: int  # 0: a number


class Loop:
    """One loop, to be called with arrays and numbers; it runs without the interpreter's lock.

    Args:
        name: in :data:`LOOPS`.
    """

    def __init__(self, name: str) -> None:
        self.name, (self.module, text) = name, LOOPS[name]
        takes, gives = text.split("->")
        self.results = int(gives)
        self.arguments = [_argument(word) for word in takes.split()]
        self._any = [i for i, argument in enumerate(self.arguments) if argument.kind is None]
        self._entries: dict[tuple[np.dtype[Any], ...], Callable[..., None]] = {}
        self._by_numba = False  # where its code does not run alone

    def __call__(self, *arguments: Any) -> Any:
        """Run it.

        Raises:
            TypeError: an array of another type or shape than the loop takes, or one that is not contiguous.
        """
        free = tuple([arguments[i].dtype for i in self._any])
        entry = self._entries.get(free) or self._load(free)
        if entry is None:
            return getattr(import_module(f"cpift.kernels.{self.module}"), self.name)(*arguments)
        values: list[int] = []
        for (kind, axes), argument in zip(self.arguments, arguments, strict=True):
            if not axes:
                values.append(int(argument))
                continue
            if (
                (kind is not None and argument.dtype != kind)
                or argument.ndim != axes
                or not argument.flags.c_contiguous
            ):
                raise TypeError(f"{self.name}: takes no {argument.dtype} array of {argument.ndim} axes there")
            values.append(argument.ctypes.data)
            values.extend(argument.shape)
        results = (ctypes.c_int64 * 2)()
        entry(*values, ctypes.addressof(results))
        return None if not self.results else results[0] if self.results == 1 else tuple(results)

    def _load(self, free: tuple[np.dtype[Any], ...]) -> Callable[..., None] | None:
        """The entry for these types; None where numba must call the loop itself."""
        with _lock:
            if free not in self._entries and not self._by_numba:
                file = _folder() / f"{'-'.join([self.name, *map(str, free)])}.{_processor()}.{_key()}.o"
                code = _kept(file)
                if code is None and (code := self._compiled(free)) is not None:
                    _keep(file, code)
                if code is None:
                    self._by_numba = True
                    return None
                self._entries[free] = _entry(f"cpift_{self.name}", code, self.count)
            return self._entries.get(free)

    @property
    def count(self) -> int:
        """How many integers its entry takes: an address and the length of each axis for an array."""
        return sum(1 + axes for _, axes in self.arguments) + 1

    def _compiled(self, free: tuple[np.dtype[Any], ...]) -> bytes | None:
        from cpift.kernels.compile import NotAloneError, machine_code  # noqa: PLC0415 - imports numba

        rest = iter(free)
        kinds = [(str(kind or next(rest)), axes) for kind, axes in self.arguments]
        try:
            return machine_code(self.module, self.name, kinds, self.results, target_machine())
        except NotAloneError:
            return None


def _argument(word: str) -> _Argument:
    kind, _, axes = word.partition("[")
    return _Argument(None if kind == "*" else np.dtype(kind), axes.count(":"))


loop = cache(Loop)


@cache
def target_machine() -> llvm.TargetMachine:
    """This processor, for which code is made."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="static" if target.name.startswith("x86") else "default",
        codemodel="jitdefault",
        jit=True,
    )


_engines: list[Any] = []  # kept, as the code lives in them


def _entry(name: str, code: bytes, count: int) -> Callable[..., None]:
    """The function of this name in the machine code, which takes ``count`` integers."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * count)(engine.get_function_address(name))


@cache
def _processor() -> str:
    """Of this processor: machines of several kinds may share the folder, and each keeps code of its own."""
    return xxhash.xxh3_64_hexdigest(f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}".encode())


@cache
def _key() -> str:
    """Of all else that decides what the code is: sources and versions."""
    made = xxhash.xxh3_64()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        made.update(file.read_bytes())
    numba = find_spec("numba")
    if numba is not None and numba.origin is not None:
        made.update(Path(numba.origin).with_name("_version.py").read_bytes())
    made.update(llvmlite.__version__.encode())
    return made.hexdigest()


@cache
def _folder() -> Path:
    """Where numba's own cache would be: ``NUMBA_CACHE_DIR``; beside the sources; where these are read-only, cpift's own."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        return Path(given) / "cpift"
    beside = Path(__file__).with_name("__pycache__")
    with suppress(OSError):
        beside.mkdir(exist_ok=True)
    if os.access(beside, os.W_OK):
        return beside
    return cache_folder() / "kernels"


def _kept(file: Path) -> bytes | None:
    """Code that was kept; None without it, or where it was damaged."""
    try:
        held = file.read_bytes()
    except OSError:
        return None
    return held[_DIGEST:] if xxhash.xxh3_128_digest(held[_DIGEST:]) == held[:_DIGEST] else None


def _keep(file: Path, code: bytes) -> None:
    """Keep code in place of what was made of older sources. Where nothing can be written, it is made anew each time."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as scratch:
            scratch.write(xxhash.xxh3_128_digest(code) + code)
        os.replace(scratch.name, file)
        for other in file.parent.glob(f"{file.name.removesuffix('.o').rpartition('.')[0]}.*.o"):
            if other != file:
                other.unlink()
