"""A few instructions that numba lacks; they let the loops of ``kernels`` run in vector registers."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

WIDTH = 64
_LINE = 64  # bytes of a line of the cache
_BIT, _INT, _LONG = ir.IntType(1), ir.IntType(32), ir.IntType(64)


@intrinsic  # type: ignore[untyped-decorator]
def float_of(typing: object, bits: object) -> Any:
    """The float32 of these uint32 bits."""
    return types.float32(types.uint32), lambda _, builder, __, args: builder.bitcast(args[0], ir.FloatType())


@intrinsic  # type: ignore[untyped-decorator]
def bits_of(typing: object, value: object) -> Any:
    """The uint32 bits of this float32."""
    return types.uint32(types.float32), lambda _, builder, __, args: builder.bitcast(args[0], ir.IntType(32))


@intrinsic  # type: ignore[untyped-decorator]
def compare_groups(typing: Any, stored: Any, origin: Any, groups: Any, limit: Any, hits: Any, masks: Any) -> Any:
    r"""Compare the bits of \|stored - origin\| with ``limit``, WIDTH elements at a time.

    stored: uint16 (bf16), float32 or float64. origin: float32. Both hold at least ``groups`` · WIDTH elements.
    limit: int32. Out, of each group with an element above the limit, in order: hits, int32: its number; masks, uint64:
    bit i is set where element i is above. Both have room for one entry more than there are groups.
    Returns the number of such groups, and the number of elements whose difference is not zero.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, args, strict=True)
        ]
        elements, before, number_of, bound, hit, mask_of = arrays
        integers, floats = ir.VectorType(_INT, WIDTH), ir.VectorType(ir.FloatType(), WIDTH)

        def every(value: int) -> Any:
            return ir.Constant(integers, [value] * WIDTH)

        def load(data: Any, at: Any, kind: Any, align: int) -> Any:
            place = builder.bitcast(builder.gep(data, [at]), ir.VectorType(kind, WIDTH).as_pointer())
            return builder.load(place, align=align)

        def widened(at: Any) -> Any:
            kind = signature.args[0].dtype
            if kind == types.uint16:
                upper = builder.zext(load(elements, at, ir.IntType(16), 2), integers)
                return builder.bitcast(builder.shl(upper, every(16)), floats)
            if kind == types.float32:
                return load(elements, at, ir.FloatType(), 4)
            return builder.fptrunc(load(elements, at, ir.DoubleType(), 8), floats)

        unset = ir.Constant(integers, ir.Undefined)
        limits = builder.shuffle_vector(builder.insert_element(unset, bound, ir.Constant(_INT, 0)), unset, every(0))
        moved = cgutils.alloca_once_value(builder, every(0))
        count = cgutils.alloca_once_value(builder, ir.Constant(_LONG, 0))
        with cgutils.for_range(builder, number_of) as loop:
            at = builder.mul(loop.index, ir.Constant(_LONG, WIDTH))
            update = builder.fsub(widened(at), load(before, at, ir.FloatType(), 4))
            keys = builder.and_(builder.bitcast(update, integers), every(0x7FFFFFFF))
            # min(key, 1) adds up in vectors; a mask of the zeros would have to leave them
            one = builder.select(builder.icmp_unsigned("<", keys, every(1)), keys, every(1))
            builder.store(builder.add(builder.load(moved), one), moved)
            mask = builder.bitcast(builder.icmp_signed(">", keys, limits), ir.IntType(WIDTH))
            place = builder.load(count)  # written always, kept where there is a hit: no branch to be guessed
            builder.store(mask, builder.gep(mask_of, [place]))
            builder.store(builder.trunc(loop.index, _INT), builder.gep(hit, [place]))
            some = builder.icmp_unsigned("!=", mask, ir.Constant(ir.IntType(WIDTH), 0))
            builder.store(builder.add(place, builder.zext(some, _LONG)), count)
        return context.make_tuple(builder, signature.return_type, [builder.load(count), _sum(builder, moved)])

    result = types.UniTuple(types.int64, 2)
    return result(stored, origin, types.int64, types.int32, hits, masks), generate


def _sum(builder: Any, vector: Any) -> Any:
    """The sum of the WIDTH integers at this place, by halves."""
    values, width = builder.load(vector), WIDTH
    while width > 1:
        width //= 2
        lower, upper = (
            builder.shuffle_vector(
                values, values, ir.Constant(ir.VectorType(_INT, width), list(range(first, first + width)))
            )
            for first in (0, width)
        )
        values = builder.add(lower, upper)
    return builder.sext(builder.extract_element(values, ir.Constant(_INT, 0)), _LONG)


@intrinsic  # type: ignore[untyped-decorator]
def stack(typing: object, nbytes: object) -> Any:
    """Memory of the running call, for ``numba.carray``: what numba itself allocates would need numba to be freed.

    To be called once in a call, not in a loop.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        room = builder.alloca(ir.IntType(8), size=args[0])
        room.align = _LINE
        return room

    return types.voidptr(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def fetch(typing: object, address: object) -> Any:
    """Ask for the line of memory at this address, which will be read soon; nothing waits for it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        kinds = [ir.IntType(8).as_pointer(), _INT, _INT, _INT]
        asked = builder.module.declare_intrinsic("llvm.prefetch", fnty=ir.FunctionType(ir.VoidType(), kinds))
        builder.call(asked, [place, ir.Constant(_INT, 0), ir.Constant(_INT, 3), ir.Constant(_INT, 1)])
        return context.get_dummy_value()

    return types.none(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def lowest(typing: object, mask: object) -> Any:
    """Number of the lowest bit that is set; the mask is not 0."""
    return types.uint64(types.uint64), lambda _, builder, __, args: builder.cttz(args[0], ir.Constant(_BIT, 1))


def number(stored):  # type: ignore[no-untyped-def]
    """A stored element as a number: uint16 is bf16, the upper half of a float32; all else is what it is."""
    raise NotImplementedError("for compiled code only")


@overload(number, inline="always")
def _number(stored):  # type: ignore[no-untyped-def]
    if stored == types.uint16:
        return lambda stored: float_of(np.uint32(stored) << np.uint32(16))
    return lambda stored: stored


@intrinsic  # type: ignore[untyped-decorator]
def pointer(typing: object, address: object) -> Any:
    """The memory at this address, for ``numba.carray``; whoever calls keeps it alive."""
    return types.voidptr(types.int64), lambda _, builder, __, args: builder.inttoptr(
        args[0], ir.IntType(8).as_pointer()
    )
