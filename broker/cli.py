"""How a process ends before a person's eyes: one line for what the user can mend, a traceback for what only we can.

Invariant: `Refused` always ends with status 2 and one line `headrace: …` on stderr. Refuses to know what `main` does.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import redis

from broker.errors import Fenced, Refused

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
        except (redis.ConnectionError, redis.TimeoutError) as error:
            _end(f"lost Redis: {str(error)[:300]}", LOST)

    return run


def _end(line: str, status: int) -> None:
    print(f"headrace: {' '.join(line.split())}", file=sys.stderr, flush=True)
    raise SystemExit(status) from None
