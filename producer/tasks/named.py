"""Functions and classes by name: `module:name`, or `file.py:name` for what a user brings.

Invariant: the same name leads to the same object in every process that runs in the same directory. Refuses to know
what is found.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import zlib
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any


def resolve(name: str) -> Any:
    """The object behind `module:dotted.name` or `path/to/file.py:dotted.name`.

    Raises what importing it raises, `ImportError` or `AttributeError` for a name that leads nowhere.
    """
    where, _, attribute = name.rpartition(":")
    module = load(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    return reduce(getattr, attribute.split("."), module)


def load(file: Path) -> ModuleType:
    """The module in `file`, once a process; it may import its neighbours. Raises what it raises, and `ImportError`."""
    path = file.resolve()
    name = f"headrace_user_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"no Python file {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
