"""A generator's side of a version's way, without an engine: waits for each version, opens it, says when that was done.

Invariant: it reads as a generator does (wait, lease, open, loaded), and says nothing of a version before all of it is
checked and on disk. Refuses to know how long the others take.
"""

from __future__ import annotations

import argparse
import json
import time

import redis

from broker.keys import Keys
from broker.policies import reader
from broker.settings import RecipeBase


def main() -> None:
    """Until the pointer names version `--last`; one line of JSON a version on standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True, help="as JSON")
    parser.add_argument("--name", required=True)
    parser.add_argument("--last", type=int, required=True)
    options = parser.parse_args()
    recipe = RecipeBase.model_validate_json(options.recipe)
    assert recipe.broker.url is not None
    policy = reader(recipe, redis.Redis.from_url(recipe.broker.url, protocol=2), Keys(recipe.run.name))
    held = -1
    print(json.dumps({"ready": options.name}), flush=True)
    while held < options.last:
        version = policy.wait(held, 60.0)
        if version is None:
            continue
        seen = time.time()
        policy.lease(options.name, version)
        policy.open(version)
        policy.loaded(version)
        held = version
        print(json.dumps({"version": version, "seen": seen, "held": time.time()}), flush=True)
    policy.close()


if __name__ == "__main__":
    main()
