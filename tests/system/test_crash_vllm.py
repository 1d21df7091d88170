"""A cell of the crash matrix with a real vLLM: its engine is killed in the middle of a run, and started again."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.system.audit import Audit
from tests.system.pipeline import Pipeline, wait_until

STEPS = 16
START_SECONDS = 400.0  # vLLM takes half a minute, on a busy machine minutes
RECIPE = f"""--run.steps {STEPS} --run.max_staleness 6 --learner.learning_rate 3e-3 --learner.checkpoint_every 3
    --sampling.group_size 8 --policy.keep 50 --broker.lease_seconds 3 --monitoring.warn_seconds 5 --generator.slots 2
    --generator.engine vllm --generator.kv_cache_gib 0.25 --generator.enforce_eager true"""


@pytest.mark.engine
def test_the_engine_is_killed_and_the_run_goes_on_with_another(taught: Path, tmp_path: Path) -> None:
    with Pipeline(tmp_path / "runs", ["--run.model", str(taught), *RECIPE.split()]) as run:
        audit = Audit(run.server.url, run.keys)
        run.learner()
        generator = run.generator()
        wait_until(lambda: run.step() >= 3, "three steps are done", START_SECONDS)
        engines = [child for child in psutil.Process(generator.pid).children(True) if "EngineCore" in child.name()]
        assert engines, psutil.Process(generator.pid).children(True)
        for engine in engines:
            engine.kill()
        assert run.wait_for("learner", START_SECONDS) == 0
        assert run.wait_for("generator", 60) == 0, run.log("generator")[-3000:]
        audit.close()
        assert "the engine is up again" in run.log("generator")
        train, evaluation = run.ledger().balance(), run.ledger("eval").balance()
        assert train.balanced
        assert evaluation.balanced
        assert not train.unsettled | evaluation.unsettled
        assert train.verdicts["trained"] == STEPS * 2
        assert not train.verdicts.get("stale")
        assert not train.verdicts.get("failed")
        assert audit.verify(run.run_folder / "policy", 1.0) > 100
