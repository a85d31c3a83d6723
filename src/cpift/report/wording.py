"""Numbers and sentences for people."""

from __future__ import annotations

from collections.abc import Sequence

from cpift.metrics.metric import Unit


def score(value: float, unit: Unit) -> str:
    """33.3 %, or 1.234 nats."""
    return f"{unit.number(value)} {unit.short}"


def gap(value: float, unit: Unit) -> str:
    """+3.3 points, or −0.123 nats."""
    return f"{signed(unit.scale * value, unit.digits)} {unit.difference}"


def interval(low: float, high: float, unit: Unit) -> str:
    """−1.2 … +4.5, in the unit of :func:`gap`."""
    return f"{signed(unit.scale * low, unit.digits)} … {signed(unit.scale * high, unit.digits)}"


def signed(value: float, digits: int) -> str:
    """With a sign, a real minus; zero has none."""
    text = f"{abs(value):.{digits}f}"
    return text if not float(text) else ("+" if value > 0 else "−") + text


def count(value: float) -> str:
    """1,234; 1.35 million; 2.1 billion."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:,.0f}"


def percent(value: float, digits: int = 1) -> str:
    """A share as per cent; what is not quite nothing is not called nothing."""
    if 0 < value < 10**-digits / 200:
        return f"under {10**-digits:.{digits}f} %"
    return f"{100 * value:.{digits}f} %"


def names(values: Sequence[str], most: int = 4, longest: int = 40) -> str:
    """a, b and c; or a, b, c and 5 more."""
    shown = [v if len(v) <= longest else v[: longest - 1] + "…" for v in values]
    if len(shown) > most:
        return ", ".join(shown[: most - 1]) + f" and {len(shown) - most + 1} more"
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1] if shown else "none"


def model(name: str) -> str:
    """A model's name as the page shows it."""
    kind, _, which = name.partition("/")
    return {"probe": f"spec. {which}", "refine": f"refine {which}"}.get(kind, name)
