"""One process of a recipe, for `make producer`, `make consumer`, `make join`: a model made ready, then the process.

Invariant: what runs in the end is `python -m producer|consumer` in this very process (of several ranks: torchrun), with
the user's recipe, or that of the run that is joined, and the user's flags.
Refuses to know what the process does.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from broker.cli import guarded
from deploy.cores import sharing
from deploy.join import joined, written
from deploy.model import with_model
from deploy.ranks import learner
from deploy.recipe import leave_word, read


def _arguments(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What is ours, and the flags of the recipe. Who joins a run names no recipe."""
    joins = any(word.partition("=")[0] == "--join" for word in words)
    parser = argparse.ArgumentParser(prog="headrace", description="one process of a run", allow_abbrev=False)
    parser.add_argument("role", choices=("producer",) if joins else ("producer", "consumer"))
    if not joins:
        parser.add_argument("recipe", type=Path)
    parser.add_argument(
        "--join", metavar="RUN", help="a generator: take the recipe from Redis, where the learner put it"
    )
    parser.add_argument("--check", action="store_true", help="validate, print the resolved recipe, start nothing")
    return parser.parse_known_args(words)


@guarded
def main() -> None:
    """Entry point."""
    options, flags = _arguments(sys.argv[1:])
    program = ["-m", options.role]
    if options.join is not None:
        recipe = with_model(joined(options.join, flags))
        flags += ["--run.name", recipe.run.name, "--run.model", recipe.run.model]
        options.recipe = written(recipe)
    elif not options.check:
        recipe = with_model(read(options.recipe, flags))
        flags += ["--run.model", recipe.run.model]
        if options.role == "consumer":
            program = learner(recipe)
            if os.environ.get("NODE_RANK", "0") == "0":  # of several machines the first one says what the run is
                leave_word(recipe)
    if options.check:
        flags.append("--check")
    arguments = [sys.executable, *program, str(options.recipe), *flags]
    os.execve(sys.executable, arguments, sharing(os.environ))  # the others may be in the terminal beside


if __name__ == "__main__":
    main()
