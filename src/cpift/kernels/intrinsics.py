"""A few instructions that numba lacks; they let the loops of ``kernels`` run in vector registers."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

WIDTH = 32
_BIT = ir.IntType(1)


@intrinsic  # type: ignore[untyped-decorator]
def float_of(typing: object, bits: object) -> Any:
    """The float32 of these uint32 bits."""
    return types.float32(types.uint32), lambda _, builder, __, args: builder.bitcast(args[0], ir.FloatType())


@intrinsic  # type: ignore[untyped-decorator]
def bits_of(typing: object, value: object) -> Any:
    """The uint32 bits of this float32."""
    return types.uint32(types.float32), lambda _, builder, __, args: builder.bitcast(args[0], ir.IntType(32))


@intrinsic  # type: ignore[untyped-decorator]
def above(typing: Any, keys: Any, start: Any, limit: Any) -> Any:
    """Bit i of the result: ``keys[start + i] > limit``, for i below WIDTH; keys is int32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(32), WIDTH)
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        values = builder.load(builder.bitcast(builder.gep(data, [args[1]]), vector.as_pointer()), align=4)
        unset, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        limits = builder.shuffle_vector(
            builder.insert_element(unset, args[2], first), unset, ir.Constant(vector, [0] * WIDTH)
        )
        return builder.bitcast(builder.icmp_signed(">", values, limits), ir.IntType(WIDTH))

    return types.uint32(keys, types.int64, types.int32), generate


@intrinsic  # type: ignore[untyped-decorator]
def lowest(typing: object, mask: object) -> Any:
    """Number of the lowest bit that is set; the mask is not 0."""
    return types.uint32(types.uint32), lambda _, builder, __, args: builder.cttz(args[0], ir.Constant(_BIT, 1))


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
