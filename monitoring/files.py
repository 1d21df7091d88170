"""Files that are there whole or not at all.

Invariant: whoever reads one never sees half of it. Refuses to know what is in them.
"""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Under its name in one rename. Raises `OSError`, and leaves nothing beside it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
