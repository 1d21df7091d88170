"""A recipe's model made ready: asks `deploy.prepare`, in a process of its own, which loads torch and ends.

Invariant: the recipe that comes back names a complete model directory. Refuses to know how a model is made.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from broker.child import with_parent
from deploy.recipe import Recipe

MODELS = Path(os.environ.get("HEADRACE_MODELS") or "models")  # where what is prepared is kept


def with_model(recipe: Recipe) -> Recipe:
    """`recipe` with its model's directory. Ends this process as `deploy.prepare` ended where that refuses."""
    command = [sys.executable, "-m", "deploy.prepare", recipe.run.model, "--out", str(MODELS)]
    if recipe.run.trust_remote_code:
        command.append("--trust-remote-code")
    # In a session of its own: a Ctrl-C reaches us alone, and we end it.
    done = subprocess.run(with_parent(command), stdout=subprocess.PIPE, text=True, start_new_session=True)
    if done.returncode != 0:
        raise SystemExit(done.returncode)  # it said why in one line
    model = Path(done.stdout.strip().splitlines()[-1]).resolve()
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"model": str(model)})})
