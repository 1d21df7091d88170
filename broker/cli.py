"""How a process begins and ends before a person's eyes: one line for what the user can mend, else a traceback.

Invariant: `Refused` always ends with status 2 and one line `headrace: …` on stderr. Refuses to know what `main` does.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import redis

from broker.errors import Fenced, Refused
from broker.files import disk_full
from broker.loading import load
from broker.settings import RecipeBase

R = TypeVar("R", bound=RecipeBase)

REFUSED, INTERRUPTED, FENCED, LOST = 2, 130, 3, 1


def guarded(main: Callable[[], None]) -> Callable[[], None]:
    """Decorator of entry points."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except Refused as error:
            _end(str(error), REFUSED)
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        except Fenced as error:
            _end(str(error), FENCED)
        except OSError as error:
            if not disk_full(error):
                raise
            _end(f"{error.strerror} in {error.filename}: free some, then the same command goes on", REFUSED)
        except redis.exceptions.NoPermissionError as error:
            _end(f"Redis refuses this user: {str(error)[:300]}: `make acl` makes users that may do it", REFUSED)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            _end(f"lost Redis: {str(error)[:300]}", LOST)

    return run


def process_recipe(kind: type[R], prog: str, description: str) -> R:
    """The recipe of a generator or learner from its command line; `--check` prints it and ends. Raises `Refused`."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--check", action="store_true", help="validate, print the resolved recipe, start nothing")
    options, flags = parser.parse_known_args()
    recipe = load(kind, options.recipe, flags)
    if options.check:
        print(recipe.model_dump_json(indent=2, exclude_none=True))
        raise SystemExit(0)
    if not Path(recipe.run.model).is_dir():
        raise Refused(f"no model directory {recipe.run.model}", "`python -m deploy.prepare MODEL` makes one ready")
    return recipe


def _end(line: str, status: int) -> None:
    print(f"headrace: {' '.join(line.split())}", file=sys.stderr, flush=True)
    raise SystemExit(status) from None
