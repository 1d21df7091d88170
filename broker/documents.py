"""JSON that somebody else wrote.

Invariant: `read_json` returns plain data or raises `Malformed`, whatever the bytes are: too deep, too long a number, no
text at all. Refuses to know what a document should hold.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from broker.errors import Malformed

INDEX = "model.safetensors.index.json"


def read_json(raw: bytes | str) -> Any:
    """The value; its numbers are finite. Raises `Malformed`."""
    try:
        return json.loads(raw, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:  # of ValueError also: no UTF-8, too many digits
        raise Malformed(f"not JSON ({type(error).__name__})") from None


def read_object(raw: bytes | str) -> dict[str, Any]:
    """The value, an object. Raises `Malformed`."""
    value = read_json(raw)
    if not isinstance(value, dict):
        raise Malformed("not a JSON object")
    return value


def shown(value: Any) -> str:
    """A value that somebody else wrote, for a message: short, on one line."""
    return f"{value!r:.80}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def indexed_weights(folder: Path) -> list[str]:
    """Names of the weight files in `folder` as its index has them, [] without one. Raises `Malformed`, `OSError`."""
    if not (folder / INDEX).is_file():
        return []
    names = read_object((folder / INDEX).read_bytes()).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise Malformed(f"{INDEX} has no weight_map")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise Malformed(f"{INDEX} names something else than a safetensors file beside it")
    return sorted(set(names.values()))


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)
