"""Tables of what people extend: one entry is found in help, recipe check, report and docs alike."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cpift.errors import CpiftError
from cpift.table import Table


@dataclass(frozen=True)
class Colour:
    name: str
    summary: str


def test_a_table_keeps_its_order_and_refuses_a_name_twice_or_unknown() -> None:
    """Names in the order registered; a taken name and an unknown one are clear errors, the latter with the nearest."""
    colours = Table("colour", [Colour("red", "as blood"), Colour("blue", "as the sky")])
    colours.register(Colour("green", "as grass"))
    assert list(colours) == ["red", "blue", "green"]
    assert colours.names() == "red | blue | green"
    assert colours.help() == "red: as blood; blue: as the sky; green: as grass"
    assert colours.choose("green", "wall.colour").summary == "as grass"
    with pytest.raises(CpiftError, match="colour red: the name is taken"):
        colours.register(Colour("red", "again"))
    with pytest.raises(CpiftError, match=r"wall\.colour: gren is none of red, blue, green; did you mean 'green'\?"):
        colours.choose("gren", "wall.colour")
    with pytest.raises(ValueError, match="is none of"):
        colours.check("grey?")
