"""Numbers as people read them, for the units that our panels use (Grafana's names).

Invariant: three significant digits, unless the panel says how many decimals. Refuses to know panels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"))
BINARY = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
TIMES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
ABOVE_ONE = SI[:5]


def text(value: float | None, unit: str, decimals: int | None = None) -> str:
    """With its unit; a dash where there is no number."""
    if value is None or not math.isfinite(value):
        return "–"
    kind, _, rest = unit.partition(":")
    match kind:
        case "percentunit":
            return f"{number(100 * value, decimals)} %"
        case "s":
            return _scaled(value, TIMES, "", decimals)
        case "bytes":
            return _scaled(value, BINARY, "", decimals)
        case "flops":
            return _scaled(value, SI, "FLOP/s", decimals)
        case "si":
            return _scaled(value, ABOVE_ONE, rest, decimals)
        case "short":
            return _scaled(value, ABOVE_ONE, "", decimals)
        case "suffix":
            return f"{number(value, decimals)} {rest}"
        case "sci":
            return f"{value:.3g}"
    return number(value, decimals)


def number(value: float, decimals: int | None = None) -> str:
    """Without trailing zeros, unless it is said how many decimals there are to be."""
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    if decimals is None and digits > 6:
        return f"{value:.2g}"
    found = f"{value + 0.0:.{digits if decimals is None else decimals}f}"  # no minus before a zero
    return found.rstrip("0").rstrip(".") if decimals is None and digits else found


def _scaled(value: float, scale: Sequence[tuple[float, str]], unit: str, decimals: int | None) -> str:
    plain = next(name for size, name in scale if size == 1.0)
    fits = ((size, name) for size, name in scale if abs(value) >= size)
    size, name = (1.0, plain) if value == 0 else next(fits, scale[-1])
    return f"{number(value / size, decimals)} {name}{unit}".rstrip()
