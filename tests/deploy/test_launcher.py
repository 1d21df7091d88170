"""The launcher as a user meets it: a run that ends by itself, and every way in which it may be broken off before."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis as redis_library
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from broker.connection import connect
from broker.embedded import EmbeddedServer
from broker.errors import Refused
from broker.keys import Keys
from broker.ledger import Ledger
from broker.run_folder import RunFolder
from broker.settings import BrokerSettings
from deploy.disk import require_disk
from deploy.prepare import prepare
from deploy.recipe import read
from tests.ports import free_port
from tests.system.pipeline import ROOT, wait_until

RECIPE = str(ROOT / "recipes" / "tiny.toml")
GROUPS_PER_STEP = 2
CTRL_C_SECONDS = 10.0  # a promise to the user


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare("random:llama-tiny", tmp_path_factory.mktemp("models"))


class Launch:
    """One start of the launcher, in a session of its own as in a terminal; and what became of it."""

    module = "deploy.launcher"

    def __init__(self, directory: Path, model: str | Path, *flags: str, name: str = "tiny", **environ: str) -> None:
        self.folder = RunFolder(directory / name)
        self.output = directory / f"output-{time.monotonic_ns()}"
        command = [sys.executable, "-m", self.module, RECIPE, "--run.directory", str(directory)]
        command += ["--run.model", str(model), "--sampling.group_size", "16", *flags]  # the larger, the sooner mixed
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | environ,
                start_new_session=True,
            )

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        return self.output.read_text()

    @property
    def family(self) -> list[psutil.Process]:
        """Every process below it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def member(self, word: str) -> psutil.Process | None:
        """The process below it whose command line has the word."""
        for process in self.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if word in process.cmdline() or word in Path(process.exe()).name:
                    return process
        return None

    def steps(self) -> list[int]:
        """Every step that the learner has told of, in order."""
        return [record["step"] for record in records(self.folder) if "step" in record]

    def reach(self, step: int) -> None:
        """Wait for a step."""
        wait_until(lambda: step in self.steps() or self.process.poll() is not None, f"step {step} is done")
        assert self.process.poll() is None, self.said

    def ended(self, seconds: float) -> bool:
        """Whether it has, after so long at most."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.poll() is not None

    def end(self, seconds: float = 120.0) -> int:
        """Its exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not ended after {seconds} s:\n{self.said[-3000:]}") from None


def records(folder: RunFolder) -> list[dict[str, Any]]:
    if not folder.steps.exists():
        return []
    return [json.loads(line) for line in folder.steps.read_text().splitlines() if line.endswith("}")]


@contextmanager
def redis_of(folder: RunFolder) -> Iterator[redis_library.Redis]:
    """The run's own Redis, opened again on what it left on disk."""
    with EmbeddedServer(folder.redis) as server, connect(BrokerSettings(), server.url) as client:
        yield client


def all_accounted_for(folder: RunFolder, *, steps: int | None = None) -> None:
    """Every ticket is where the books say; of a run of so many `steps` that has ended, none is left."""
    keys = Keys(folder.path.name)
    with redis_of(folder) as client:
        train, evaluation = Ledger(client, keys).balance(), Ledger(client, keys, "eval").balance()
    assert train.balanced, train
    assert evaluation.balanced, evaluation
    assert train.verdicts.get("stale", 0) == train.verdicts.get("failed", 0) == 0
    if steps is not None:
        assert not train.unsettled | evaluation.unsettled
        assert train.verdicts["trained"] == steps * GROUPS_PER_STEP


def all_gone(family: list[psutil.Process]) -> bool:
    """No process is left of what was below a launcher."""
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family)


def files(folder: RunFolder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


# -- a run that ends by itself ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Launch:
    """A run of three steps that was left alone."""
    with Launch(tmp_path_factory.mktemp("finished"), model, "--run.steps", "3") as launch:
        assert launch.end() == 0, launch.said
        return launch


def test_a_run_ends_by_itself_and_leaves_everything_it_promised(finished: Launch) -> None:
    folder = finished.folder
    assert read(folder.recipe).run.steps == 3
    assert finished.steps() == [1, 2, 3]
    assert {record["eval"]["label"] for record in records(folder) if "eval" in record} == {"start", "end"}
    assert folder.plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads(folder.summary.read_text())["steps"] == 3
    assert str(folder.path) in finished.said
    assert "Traceback" not in finished.said + folder.log("learner").read_text() + folder.log("generator-0").read_text()
    assert folder.launcher() is None
    all_accounted_for(folder, steps=3)


def test_its_model_can_be_loaded_by_name_alone(finished: Launch, model: Path) -> None:
    trained: Any = AutoModelForCausalLM.from_pretrained(finished.folder.model)
    before: Any = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(finished.folder.model)
    ids = tokenizer("What is 3 + 4?", return_tensors="pt")
    assert trained(**ids).logits.shape[-1] == len(tokenizer)
    now, then = trained.state_dict(), before.state_dict()
    assert now.keys() == then.keys()
    assert any(not torch.equal(now[name], then[name]) for name in then), "it has been trained"


def test_a_finished_run_stays_as_it_is_and_the_next_is_kept_from_third_parties(finished: Launch, model: Path) -> None:
    """And another process can stop it, even at its very beginning."""
    before, directory = files(finished.folder), finished.folder.path.parent
    with Launch(directory, model, name="tiny-2") as second:
        wait_until(lambda: second.member("producer"), "the generator has been started")
        assert f"{finished.folder.path} is finished and stays as it is; this run is {second.folder.path}" in second.said
        with Launch(directory, model) as third:
            assert third.end() == 2
            cause = f"headrace: {second.folder.path} is being worked on by process {second.process.pid}"
            assert third.said == f"{cause}: `make down` ends it\n"
        family = second.family
        for answer in (f"stopped {second.folder.path}\n", f"nothing runs in {second.folder.path}\n"):
            with Launch(directory, model, "--stop") as stop:
                assert stop.end() == 0, stop.said
                assert stop.said == answer
            assert second.end() == 130, second.said
            assert all_gone(family)
    assert files(finished.folder) == before


# -- a run that is broken off -----------------------------------------------------------------------------------------


def press_ctrl_c(launch: Launch) -> None:
    """As a terminal sends it, to the whole foreground group, and impatiently again and again."""
    pressed = time.monotonic()
    while launch.process.poll() is None:
        os.killpg(launch.process.pid, signal.SIGINT)
        time.sleep(0.1)  # fingers are no faster
        assert time.monotonic() - pressed < CTRL_C_SECONDS, launch.said
    assert launch.end() == 130, launch.said
    assert f"stopped; the same command goes on with {launch.folder.path}" in launch.said
    assert "Traceback" not in launch.said


def test_a_run_that_is_interrupted_and_later_killed_is_still_one_run(tmp_path: Path, model: Path) -> None:
    flags = ["--run.steps", "6", "--learner.checkpoint_every", "3", "--learner.eval_problems", "0"]
    with Launch(tmp_path, model, *flags) as interrupted:
        interrupted.reach(2)
        family = interrupted.family
        press_ctrl_c(interrupted)
        assert all_gone(family)
        assert not interrupted.folder.finished
        all_accounted_for(interrupted.folder)
    with Launch(tmp_path, model, *flags) as killed:
        killed.reach(4)
        family = killed.family
        killed.process.kill()
        killed.end()
        wait_until(lambda: all_gone(family), "its children are gone", 30)
        all_accounted_for(killed.folder)
    with Launch(tmp_path, model, *flags) as finished:
        assert finished.end() == 0, finished.said
        assert f"going on with {finished.folder.path}" in finished.said
        versions = {record["step"]: record["policy_version"] for record in records(finished.folder) if "step" in record}
        if "published under a new number" in finished.folder.log("learner").read_text():
            # Redis was killed while its disk was slow, and lost its last second: then numbers are passed over.
            assert sorted(versions) == list(range(1, 7))
            assert sorted(set(versions.values())) == [versions[step] for step in range(1, 7)], "none is used twice"
        else:
            assert versions == {step: step for step in range(1, 7)}, "every step once, by its last line"
        all_accounted_for(finished.folder, steps=6)


def test_a_model_that_is_being_prepared_ends_with_a_killed_launcher(tmp_path: Path) -> None:
    """That may take minutes and gigabytes, and nobody waits for it any more."""
    with Launch(tmp_path, "random:llama-tiny") as launch:
        wait_until(lambda: launch.member("deploy.prepare"), "the model is being prepared")
        (preparation,) = family = launch.family
        preparation.suspend()
        launch.process.kill()
        launch.end()
        preparation.resume()
        wait_until(lambda: all_gone(family), "it is gone", 30)
    assert not (tmp_path / "models" / "llama-tiny").exists(), "it went on to its end"


# -- what dies in mid-run ---------------------------------------------------------------------------------------------


def test_a_dead_generator_exporter_and_redis_are_revived(tmp_path: Path, model: Path) -> None:
    endless = ["--run.steps", "1000"]  # how long a process takes to come back is not counted in steps
    flags = [*endless, "--learner.eval_problems", "0", "--monitoring.exporter_port", str(free_port())]
    with Launch(tmp_path, model, *flags) as launch:
        launch.reach(1)
        for word in ("producer", "monitoring.exporter", "server"):
            wait_until(lambda: launch.member(word), f"the {word} is there")
            victim = launch.member(word)
            assert victim is not None
            done = max(launch.steps())
            victim.kill()
            wait_until(lambda: (again := launch.member(word)) and again.pid != victim.pid, f"the {word} is back")
            launch.reach(done + 3)
        press_ctrl_c(launch)
        assert sorted(set(launch.steps())) == list(range(1, max(launch.steps()) + 1))
        all_accounted_for(launch.folder)
    assert "do not balance" not in launch.folder.log("exporter").read_text()


# -- what its children are told ---------------------------------------------------------------------------------------


def test_every_process_gets_what_the_launcher_resolved_and_an_exporter_that_cannot_begin_ends_no_run(
    tmp_path: Path, model: Path
) -> None:
    """A flag is above the environment for the children as well, who inherit that; a password reaches them unwritten."""
    flags = ["--run.steps", "1", "--run.name", "tiny", "--broker.password", "s3cret", "--learner.eval_problems", "0"]
    environ = {"HEADRACE_RUN__STEPS": "3", "HEADRACE_RUN__NAME": "else", "HEADRACE_RUN__MODEL": "random:llama-tiny"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with Launch(tmp_path, model, *flags, "--monitoring.exporter_port", port, **environ) as launch:
            assert launch.end() == 0, launch.said
            assert launch.steps() == [1]
            assert {path.name for path in tmp_path.iterdir()} == {"tiny", launch.output.name}
    for path, content in files(launch.folder).items():
        assert b"s3cret" not in content, path
    assert launch.folder.log("exporter").read_text().splitlines() == [
        f"headrace: cannot serve metrics on 127.0.0.1:{port}: Address already in use: "
        "free that port, or set [monitoring] ports (0 is off)"
    ], "and is not started again and again"


def test_adapters_need_room_for_adapters_and_not_for_copies_of_the_model(tmp_path: Path) -> None:
    """A model (a hole in the disk, so to say) of which three fit: enough for adapters, too little for all of it."""
    (tmp_path / "config.json").write_text('{"hidden_size": 4096}')
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(shutil.disk_usage(tmp_path).free // 3)
    flags = ["--run.model", str(tmp_path), "--learner.lora_rank"]
    adapters = ["16", "--learner.lora_publish", "adapter"]
    require_disk(tmp_path, read(Path(RECIPE), [*flags, *adapters]))
    for whole in (["0"], ["16"]):  # of merged versions each is a whole model
        with pytest.raises(Refused, match="the run needs about"):
            require_disk(tmp_path, read(Path(RECIPE), [*flags, *whole]))
