"""Real processes on a real port: what a learner that waits for nobody, and a generator that waits for it, say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.prepare import prepare
from tests.monitoring.test_metrics import get
from tests.ports import free_port
from tests.system.pipeline import Pipeline, wait_until

PATIENCE = ["--monitoring.stall_seconds", "3", "--monitoring.warn_seconds", "1"]


def health(port: int, path: str = "/healthz") -> tuple[int, Any]:
    try:
        status, _, body = get(port, path)
        return status, json.loads(body)
    except OSError:  # not up yet
        return 0, None


def no_ticket_for(told: Any) -> float:
    """Seconds that a generator has waited for a ticket; it may still be busy with the last ones."""
    waiting = (told or {}).get("waiting", {})
    return float(waiting["since_seconds"]) if waiting.get("reason") == "ticket" else 0.0


def test_a_learner_without_generators_turns_red_and_its_generator_is_idle(tmp_path: Path) -> None:
    model, port, other = prepare("random:llama-tiny", tmp_path / "models"), free_port(), free_port()
    with Pipeline(tmp_path / "runs", ["--run.model", str(model), *PATIENCE, "--run.steps", "100000"]) as run:
        run.learner("--monitoring.learner_port", str(port))
        wait_until(lambda: health(port)[0] == 503, "the learner is red")
        assert health(port)[1]["waiting"]["reason"] == "task card"
        assert health(port, "/readyz")[0] == 503
        wait_until(lambda: "still waiting" in run.log("learner"), "the watchdog says so")
        told = next(json.loads(line) for line in run.log("learner").splitlines() if "still waiting" in line)
        assert (told["role"], told["reason"], told["level"]) == ("learner", "task card", "warning")
        run.generator("generator", "--monitoring.generator_port", str(other))
        wait_until(lambda: health(port)[0] == 200, "the learner is green")
        wait_until(lambda: run.step() >= 1, "a step is done")
        assert [health(one, "/readyz")[0] for one in (port, other)] == [200, 200]
        run.processes["learner"].kill()
        wait_until(lambda: no_ticket_for(health(other)[1]) > 4, "nothing comes")
        status, told = health(other)
        assert (status, told["waiting"]["reason"]) == (200, "ticket")
