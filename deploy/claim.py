"""Who works on a run's folder: one launcher at a time takes hold of it, and another process can ask that one to stop.

Invariant: a finished run stays as it is, and no two launchers ever work on one folder. Refuses to know what they do.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TextIO

from broker.errors import Refused
from broker.run_folder import RunFolder, current, unfinished
from deploy.recipe import Recipe

STOP_SECONDS = 20.0
POLL_SECONDS = 0.2


def claimed(recipe: Recipe) -> tuple[Recipe, TextIO]:
    """The run to start or to resume, and our hold on its folder; a finished one is left as it is. Raises `Refused`."""
    RunFolder.of(recipe.run).make()
    run = unfinished(recipe.run)
    folder = RunFolder.of(run)
    hold = folder.hold()
    if hold is None:
        raise Refused(f"{folder.path} is being worked on by process {folder.launcher()}", "`make down` ends it")
    if run is not recipe.run:
        print(f"{RunFolder.of(recipe.run).path} is finished and stays as it is; this run is {folder.path}", flush=True)
    elif folder.steps.exists():
        print(f"going on with {folder.path}", flush=True)
    return recipe.model_copy(update={"run": run}), hold


def stop(recipe: Recipe) -> None:
    """End the run that goes on under the recipe's name, and wait for that. Idempotent. Raises `Refused`."""
    folder = RunFolder.of(current(recipe.run))
    pid = folder.launcher()
    if not pid:
        print(f"nothing runs in {folder.path}")
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while folder.launcher() is not None:
        if time.monotonic() > deadline:
            raise Refused(f"process {pid} has not stopped after {STOP_SECONDS:.0f} s", f"see {folder.log('learner')}")
        time.sleep(POLL_SECONDS)
    print(f"stopped {folder.path}")
