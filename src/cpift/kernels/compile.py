"""The machine code of a loop, made by numba, with an entry that takes nothing but integers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import types

from cpift.kernels.intrinsics import pointer


class NotAloneError(Exception):
    """Code that needs numba in the process, by whatever this version of numba has put into it."""


_OF_NUMBA = re.compile(r"^declare ([^@\n]*@(?:numba_|NRT_)[^\n]*?\))[^)\n]*$", re.MULTILINE)


def machine_code(
    module: str, name: str, kinds: Sequence[tuple[str, int]], results: int, target: llvm.TargetMachine
) -> bytes:
    """An object file with the function ``cpift_NAME``.

    It takes the address and the length of each axis for an array, the number itself for a number, and at last the address
    of two int64 for results.

    Args:
        module: of this package.
        name: of the loop.
        kinds: numpy's name of the type, and the number of axes, of each argument; without axes it is a number.
        results: how many integers it returns, at most two.
        target: the processor.

    Raises:
        NotAloneError: it would not run without numba: it takes memory from it, or needs a function that there is not.
    """
    loop = getattr(import_module(f"cpift.kernels.{module}"), name)
    words, given = [], []
    space: dict[str, Any] = {"loop": loop, "carray": numba.carray, "pointer": pointer, "np": np}
    for i, (kind, axes) in enumerate(kinds):
        lengths = [f"n{i}_{axis}" for axis in range(axes)]
        words += [f"a{i}", *lengths]
        given.append(
            f"carray(pointer(a{i}), ({''.join(f'{n}, ' for n in lengths)}), np.{_numpy(kind)})"
            if axes
            else f"np.{kind}(a{i})"
        )
    targets = ["", "out[0] = ", "out[0], out[1] = "][results]
    text = f"def entry({', '.join(words)}, out):\n"
    text += "    out = carray(pointer(out), (2,), np.int64)\n" if results else ""
    exec(f"{text}    {targets}loop({', '.join(given)})\n", space)  # as dataclasses make their methods
    made = numba.cfunc(types.void(*[types.int64] * (len(words) + 1)), error_model="numpy")
    entry = made(space["entry"])
    code = llvm.parse_assembly(alone(entry.inspect_llvm()))
    code.get_function(entry.native_name).name = f"cpift_{name}"
    _check(code)
    return bytes(target.emit_object(code))


def _check(code: llvm.ModuleRef) -> None:
    """Refuse what would end the process when it is loaded or called."""
    for function in code.functions:
        name = function.name
        if re.match("NRT_.*alloc", name, re.IGNORECASE):
            raise NotAloneError(f"takes memory by {name}")
        if function.is_declaration and not name.startswith("llvm.") and not llvm.address_of_symbol(name):
            raise NotAloneError(f"needs {name}")


def _numpy(kind: str) -> str:
    return "bool_" if kind == "bool" else kind


def alone(code: str) -> str:
    """LLVM's text of an entry without numba's own functions: where a loop would raise or free, which none does, it aborts."""
    found, count = _OF_NUMBA.subn(r"define \1 {\n  call void @abort()\n  unreachable\n}", code)
    return f"{found}\ndeclare void @abort()\n" if count else found
