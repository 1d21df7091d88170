"""One process of a recipe, for `make producer` and `make consumer`: the model made ready, then the process itself.

Invariant: what runs in the end is `python -m producer|consumer` in this very process (of several ranks: torchrun), with
the user's recipe and flags.
Refuses to know what the process does.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from broker.cli import guarded
from deploy.model import with_model
from deploy.ranks import learner
from deploy.recipe import read


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="headrace", description="one process of a run")
    parser.add_argument("role", choices=("producer", "consumer"))
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--check", action="store_true", help="validate, print the resolved recipe, start nothing")
    options, flags = parser.parse_known_args()
    program = ["-m", options.role]
    if options.check:
        flags.append("--check")
    else:
        recipe = with_model(read(options.recipe, flags))
        flags += ["--run.model", recipe.run.model]
        if options.role == "consumer":
            program = learner(recipe)
    os.execv(sys.executable, [sys.executable, *program, str(options.recipe), *flags])


if __name__ == "__main__":
    main()
