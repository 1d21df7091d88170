"""`make scale N=3`: so many generators for a run that goes on, from now on until its launcher is started anew.

Invariant: nothing is started or ended here; the launcher sees the number and does so. Refuses to know how.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from broker.cli import guarded
from broker.errors import Refused
from broker.run_folder import RunFolder, current
from broker.scale import want, wanted
from deploy.recipe import Recipe, read
from deploy.verbs import generators

HIGHEST_PORT = 65535


def scale(recipe: Recipe, count: int) -> str:
    """Ask for `count` generators of the run under the recipe's name; what was done. Raises `Refused`."""
    folder = RunFolder.of(current(recipe.run))
    if folder.launcher() is None:
        raise Refused(f"nothing runs in {folder.path}", "`make up DETACH=1` starts it")
    if recipe.monitoring.port_of(count - 1) > HIGHEST_PORT:
        raise Refused(f"generator {count - 1} would have no port", "lower N, or monitoring.generator_port")
    before = wanted(folder)
    want(folder, count)
    now = f"{folder.path} has {count} generator{'' if count == 1 else 's'} from now on"
    if before is None or before == count:
        return now
    if count > before:
        return f"{now}, {count - before} more: each is at work once its engine has started"
    return f"{now}, {before - count} fewer: they finish or hand back what they hold, and leave"


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="headrace scale", description="so many generators for a run that goes on")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--count", default="", help="how many")
    options, flags = parser.parse_known_args()
    count = generators(options.count)
    print(scale(read(options.recipe, flags), count))


if __name__ == "__main__":
    main()
