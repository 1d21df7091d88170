"""`make bench`: every leg of the path, one after the other, and their tables in benchmarks/README.md.

Invariant: a leg has the machine to itself, in a process of its own; one that fails leaves its last results standing and
makes the whole end with 1. Refuses to know what a leg measures.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.findings import Leg

PAGE = Path(__file__).with_name("README.md")
LEGS = ("transport", "weights", "generator", "learner", "pipeline", "scale")
ON_GPU = ("weights", "generator", "learner", "pipeline")  # what a GPU changes


def replaced(page: str, key: str, section: str) -> str:
    """`page` with `section` between the two comments that name `key`. Raises `ValueError` where there are none."""
    pattern = re.compile(rf"(<!-- bench:{re.escape(key)} -->\n).*?(<!-- end -->)", re.DOTALL)
    out, found = pattern.subn(lambda match: f"{match[1]}{section}\n{match[2]}", page)
    if found != 1:
        raise ValueError(f"the page has {found} places for {key}")
    return out


def play(leg: str, flags: list[str], folder: Path) -> Leg | None:
    """Run one leg; None if it failed."""
    kept = folder / f"{leg}.json"
    command = [sys.executable, "-m", f"benchmarks.{leg}", "--json", str(kept), *flags]
    ended = subprocess.run(command)
    return Leg.read(kept) if ended.returncode == 0 else None


def main() -> int:
    """Entry point; 1 if a leg failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--legs", nargs="+", choices=LEGS, help="only these")
    parser.add_argument("--gpu", action="store_true", help="those that a GPU changes, into the page's part for GPUs")
    parser.add_argument("--no-page", action="store_true", help="leave the page as it is")
    options, flags = parser.parse_known_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.legs or (ON_GPU if options.gpu else LEGS):
            leg = play(name, flags, Path(folder))
            if leg is None:
                failed.append(name)
            elif not options.no_page:
                key = f"{name} gpu" if options.gpu else name
                PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), key, leg.table()), encoding="utf-8")
    if failed:
        print(f"bench: failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
