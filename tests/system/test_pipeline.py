"""The pipeline as processes: generators come and go, nothing is lost, and a killed learner takes up where it was."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from deploy.prepare import prepare
from tests.system.pipeline import Pipeline, wait_until


def model_flags(tmp_path_factory_root: Path) -> list[str]:
    return ["--run.model", str(prepare("random:llama-tiny", tmp_path_factory_root / "models"))]


def test_one_generator_leaves_and_another_joins_late(tmp_path: Path) -> None:
    flags = [*model_flags(tmp_path), "--run.steps", "8"]
    with Pipeline(tmp_path / "runs", flags) as run:
        run.learner()
        run.generator("first")
        wait_until(lambda: run.step() >= 2, "two steps are done")
        run.processes["learner"].send_signal(signal.SIGSTOP)  # the run must not end before the second is up
        run.generator("second")
        wait_until(lambda: run.client.hlen(run.keys.generators) == 2, "both generators are alive")
        run.processes["learner"].send_signal(signal.SIGCONT)
        assert run.terminate("first") == 0
        assert run.wait_for("learner") == 0, run.log("learner")
        assert run.wait_for("second") == 0, run.log("second")
        assert "refreshed" in run.log("second")

        train, evaluation = run.ledger().balance(), run.ledger("eval").balance()
        assert train.balanced
        assert evaluation.balanced
        assert not train.unsettled
        assert not evaluation.unsettled
        assert train.verdicts["trained"] == 8 * 2
        assert train.verdicts.get("stale", 0) == 0
        assert train.verdicts.get("failed", 0) == 0
    records = [json.loads(line) for line in (run.run_folder / "steps.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "step" in r] == list(range(1, 9))
    assert {r["eval"]["label"] for r in records if "eval" in r} == {"start", "end"}
    assert (run.run_folder / "model" / "model.safetensors").exists()
    assert (run.run_folder / "model" / "tokenizer.json").exists()


def test_a_killed_learner_repeats_its_steps_and_goes_on(tmp_path: Path) -> None:
    flags = [*model_flags(tmp_path), "--run.steps", "7", "--learner.checkpoint_every", "4"]
    with Pipeline(tmp_path / "runs", flags) as run:
        run.learner()
        run.generator()
        wait_until(lambda: run.step() >= 3, "three steps are committed")
        run.processes["learner"].kill()
        run.processes["learner"].wait()
        run.learner()
        assert run.wait_for("learner") == 0, run.log("learner")
        assert "repeated a step" in run.log("learner")
        assert run.wait_for("generator") == 0, run.log("generator")
        balance = run.ledger().balance()
        assert balance.balanced
        assert not balance.unsettled
        assert balance.verdicts["trained"] == 7 * 2
        assert balance.verdicts.get("stale", 0) == 0


def test_a_malformed_message_is_set_aside_and_the_learner_goes_on(tmp_path: Path) -> None:
    flags = [*model_flags(tmp_path), "--run.steps", "3"]
    with Pipeline(tmp_path / "runs", flags) as run:
        run.learner()
        wait_until(lambda: run.client.exists(run.keys.fingerprint), "the learner is up")
        run.client.xadd(run.keys.rollouts("train"), {"ticket_id": "nobody's", "payload": b"\x93garbage"})
        run.generator()
        assert run.wait_for("learner") == 0, run.log("learner")
        letters: Any = run.client.xrange(run.keys.dead_letters)
        assert [fields[b"ticket_id"] for _, fields in letters] == [b"nobody's"]
        assert letters[0][1][b"reason"]
        assert run.ledger().balance().balanced
