"""The compose file: what every service must have, that its parts fit our programs, and those of its commands that run.

Its services are started by nobody here; the commands that it hands to Redis, to Prometheus and to the shell are run
as they stand, but for the folders.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.acl import write
from broker.binary import find_binary
from broker.connection import connect, require
from broker.errors import Refused
from broker.loading import load
from broker.settings import BrokerSettings
from consumer.memory import require_room
from consumer.settings import LearnerRecipe
from deploy.recipe import Recipe
from tests.deploy.composition import read, variables, yaml
from tests.deploy.test_images import PORTS, dockerfile
from tests.ports import free_port
from tests.system.pipeline import ROOT, wait_until

COMPOSE, GPU = ROOT / "deploy" / "compose.yaml", ROOT / "deploy" / "compose.gpu.yaml"
RULES, SCRAPED = ROOT / "monitoring" / "prometheus", ROOT / "monitoring" / "prometheus" / "compose.yml"
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+(-cuda)?")
UNITS = {"m": 1 << 20, "mb": 1 << 20, "g": 1 << 30, "gb": 1 << 30}
DRAIN = "HEADRACE_GENERATOR__DRAIN_SECONDS"
ENGINE_SECONDS = 15  # what a generator needs beyond its drain
ONCE = ("passwords", "tools")  # they end by themselves
RESTARTS = {
    **dict.fromkeys(ONCE, "no"),
    **dict.fromkeys(("redis", "prometheus", "grafana"), "unless-stopped"),
    **dict.fromkeys(("learner", "generator", "exporter"), "on-failure"),  # a run that is over stays over
}
Document = dict[str, Any]


def composed(*above: Path) -> Document:
    """The file with all defaults, others laid over it."""
    return read(COMPOSE, *above)


def size(text: str) -> int:
    match = re.fullmatch(r"(\d+)(\w+)", text)
    assert match
    return int(match[1]) * UNITS[match[2]]


# -- what every service must have -------------------------------------------------------------------------------------


def faults(document: Document) -> set[str]:
    """What is wrong with a compose file of ours: the service and a word."""
    services = document["services"]
    found = {f"{name} {fault}" for name, one in services.items() for fault in faults_of(name, one, document)}
    grace, drain = services["generator"]["stop_grace_period"], services["generator"]["environment"][DRAIN]
    if int(grace.removesuffix("s")) < int(drain) + ENGINE_SECONDS:
        found.add("generator drain")
    if "monitoring" in services["redis"]["networks"] or "pipeline" in services["grafana"]["networks"]:
        found.add("redis networks")
    if not (COMPOSE.parent / document["configs"]["recipe"]["file"]).is_file():
        found.add("recipe file")
    return found


def faults_of(name: str, one: Document, document: Document) -> Iterator[str]:
    """The same of one service, in a word each."""
    limits = one.get("deploy", {}).get("resources", {}).get("limits", {})
    given = one.get("environment", {})
    checks = {
        "image": PINNED.fullmatch(one["image"]),
        "root file system": one.get("read_only") is True,
        "capabilities": one.get("cap_drop") == ["ALL"] and (name == "passwords" or not one.get("cap_add")),
        "privileges": one.get("security_opt") == ["no-new-privileges:true"] and "privileged" not in one,
        "user": name == "passwords" or not str(one.get("user", "")).startswith(("0", "root")),
        "limits": limits.keys() >= {"memory", "pids"},
        "logging": one.get("logging") == {"driver": "local"},
        "restart": one.get("restart") == RESTARTS[name],
        "health": name in ONCE or "healthcheck" in one or "build" in one,  # our images bring one along
        "ports": all(port.startswith("127.0.0.1:") for port in one.get("ports", [])),
        "grace": name == "passwords" or "stop_grace_period" in one,
        "scale": "container_name" not in one,
        "host": one.get("network_mode", "none") == "none" and not {"pid", "ipc"} & one.keys(),
        "volumes": all(volume_is_fine(volume, document) for volume in one.get("volumes", [])),
        "password": holds_its_own_password(name, one),
        "environment": "build" not in one or settings_take(given),
        "run": "build" not in one or given.get("HEADRACE_RUN__NAME") == "demo",
    }
    return (word for word, fine in checks.items() if not fine)


def volume_is_fine(volume: str, document: Document) -> bool:
    """A named one that is declared, or something of the checkout that nobody can write to."""
    source, _, *mode = volume.split(":")
    return mode == ["ro"] and (COMPOSE.parent / source).exists() if "." in source else source in document["volumes"]


def holds_its_own_password(name: str, one: Document) -> bool:
    """Its user of Redis and the volume with a password are of one role; no other is there, none is written down."""
    given = one.get("environment", {})
    held = {volume.split(":")[0] for volume in one.get("volumes", []) if volume.startswith("passwords-")}
    role = re.fullmatch(r"redis://(\w+)@redis:6379", given.get("HEADRACE_BROKER__URL", ""))
    expected = {f"passwords-{role[1]}"} if role else {"passwords-redis"} if name == "redis" else set()
    written = [key for key in given if "PASSWORD" in key.upper() and not key.endswith("_FILE")]
    return not written and (name == "passwords" or (held == expected and "secrets" not in one))


def settings_take(given: dict[str, str]) -> bool:
    """Every HEADRACE_ variable is a field of the recipe, and its value one that it may have."""
    try:
        load(Recipe, ROOT / "recipes" / "demo.toml", environ=given)
    except Refused:
        return False
    return True


@pytest.mark.parametrize("above", [(), (GPU,)])
def test_the_compose_file_is_as_it_must_be(above: tuple[Path, ...]) -> None:
    assert faults(composed(*above)) == set()


MUTATIONS: list[tuple[str, Any, str]] = [
    ("redis.image", "valkey/valkey:latest", "redis image"),
    ("redis.image", "valkey/valkey", "redis image"),
    ("learner.read_only", False, "learner root file system"),
    ("generator.cap_drop", None, "generator capabilities"),
    ("generator.cap_add", ["SYS_ADMIN"], "generator capabilities"),
    ("exporter.security_opt", None, "exporter privileges"),
    ("redis.user", "0:0", "redis user"),
    ("generator.deploy.resources.limits.memory", None, "generator limits"),
    ("learner.restart", "always", "learner restart"),
    ("grafana.healthcheck", None, "grafana health"),
    ("redis.ports", ["6379:6379"], "redis ports"),
    ("prometheus.ports", ["0.0.0.0:9090:9090"], "prometheus ports"),
    ("learner.stop_grace_period", None, "learner grace"),
    ("generator.stop_grace_period", "30s", "generator drain"),
    ("generator.container_name", "generator", "generator scale"),
    ("learner.network_mode", "host", "learner host"),
    ("learner.volumes", ["weights:/policy", "passwords-learner:/run/secrets/headrace:ro"], "learner volumes"),
    ("prometheus.volumes", ["../monitoring/prometheus/gone.yml:/etc/x.yml:ro"], "prometheus volumes"),
    ("prometheus.volumes", ["../monitoring/prometheus/rules.yml:/etc/x.yml"], "prometheus volumes"),
    ("generator.environment.HEADRACE_BROKER__URL", "redis://admin@redis:6379", "generator password"),
    ("generator.environment.HEADRACE_BROKER__URL", "redis://generator:pw@redis:6379", "generator password"),
    ("generator.environment.HEADRACE_BROKER__PASSWORD", "hunter2hunter2hunter2", "generator password"),
    ("generator.secrets", ["admin.password"], "generator password"),
    ("generator.environment.HEADRACE_GENERATOR__DRAIN_SECOND", "30", "generator environment"),
    ("learner.environment.HEADRACE_POLICY__BACKEND", "pigeon", "learner environment"),
    ("learner.environment.HEADRACE_RUN__NAME", "other", "learner run"),
    ("redis.networks", ["pipeline", "monitoring"], "redis networks"),
]


@pytest.mark.parametrize(("path", "value", "fault"), MUTATIONS)
def test_what_would_be_wrong_is_noticed(path: str, value: Any, fault: str) -> None:
    document = copy.deepcopy(composed())
    *keys, last = path.split(".")
    node = document["services"]
    for key in keys:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    assert fault in faults(document)


def test_a_recipe_that_is_not_there_is_noticed() -> None:
    assert faults(read(COMPOSE, environ={"RECIPE": "recipes/none.toml"})) == {"recipe file"}


# -- what others say of it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("above", [(), (GPU,)])
def test_it_is_what_the_compose_specification_allows(above: tuple[Path, ...]) -> None:
    specification = pytest.importorskip("compose_spec", reason="compose-spec is not installed: `make install test`")
    specification.PyCompose.from_json(json.dumps(composed(*above)))
    misspelt = json.dumps(composed(*above)).replace("stop_grace_period", "stop_grace_perod")
    with pytest.raises(ValueError, match="stop_grace_perod"):
        specification.PyCompose.from_json(misspelt)


def test_its_linter_finds_no_more_than_we_mean() -> None:
    """Images by tag, as everywhere here; all processors; root, once; and compiled kernels that are loaded from /tmp."""
    linter = Path(sys.executable).parent / "compose-lint"
    if not linter.exists():
        pytest.skip("compose-lint is not installed: `make install test`")
    command = [str(linter), "check", "--format", "json", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    found: dict[str, set[str]] = {name: set() for name in composed()["services"]}
    for one in json.loads(done.stdout)["findings"]:
        found[one["service"]].add(one["rule_id"])
    digest, processors, root, executable = "CL-0019", "CL-0026", "CL-0018", "CL-0022"
    meant = {"passwords": {root}, "learner": {executable}, "generator": {executable}}
    assert found == {name: {digest, processors} | meant.get(name, set()) for name in found}


# -- that its parts fit -----------------------------------------------------------------------------------------------


def test_the_images_are_those_of_the_dockerfile() -> None:
    for name, target in {"learner": "learner", "generator": "generator", "exporter": "tools", "tools": "tools"}.items():
        one = composed(GPU)["services"][name]
        assert one["build"]["target"] == target
        assert (COMPOSE.parent / one["build"]["context"] / one["build"]["dockerfile"]).is_file()
        assert one["image"].split(":")[0] == f"docker.io/headrace/{target}"
        assert one["build"]["args"].keys() <= {"DEVICE", "TORCH_INDEX_URL"}
        assert one["configs"] == [{"source": "recipe", "target": dockerfile().command(target, "CMD")[-1]}]
        assert one["build"]["args"]["DEVICE"] == ("cuda" if one["image"].endswith("-cuda") else "cpu")
        assert one["image"].split(":")[1].removesuffix("-cuda") == dockerfile().labels(target)[VERSION]


VERSION = "org.opencontainers.image.version"


def test_every_writable_place_of_a_process_is_mounted() -> None:
    for name in ("learner", "generator", "exporter"):
        one = composed()["services"][name]
        places = [volume.split(":")[1] for volume in one["volumes"]] + [entry.split(":")[0] for entry in one["tmpfs"]]
        assert "/tmp" in places
        assert not any("noexec" in entry for entry in one["tmpfs"]) or name == "exporter"
        if name != "exporter":
            assert {"/models", "/policy"} <= set(places)
            assert one["environment"]["HEADRACE_POLICY__DIRECTORY"].startswith("/policy/")


def test_nothing_must_be_given_and_everything_can_be() -> None:
    asked = variables(COMPOSE) | variables(GPU)
    assert {"RECIPE", "RUN", "HEADRACE_REGISTRY", "HEADRACE_TAG", "HEADRACE_SECRETS"} <= asked
    given = read(
        COMPOSE, environ={"RECIPE": "recipes/tiny.toml", "RUN": "mine", "HEADRACE_REGISTRY": "example.org:5000"}
    )
    assert given["configs"]["recipe"]["file"] == "../recipes/tiny.toml"
    assert given["services"]["learner"]["image"].startswith("example.org:5000/headrace/learner:")
    for name in ("learner", "generator", "exporter", "tools"):
        assert given["services"][name]["environment"]["HEADRACE_RUN__NAME"] == "mine"
    assert given["services"]["prometheus"]["environment"] == {"RUN": "mine"}


@pytest.mark.parametrize("recipe", ["demo", "countdown", "tiny"])
def test_a_run_on_a_cpu_fits_the_memory_of_redis(recipe: str) -> None:
    redis = composed()["services"]["redis"]
    allowed = size(redis["command"][redis["command"].index("--maxmemory") + 1])
    require_room(load(LearnerRecipe, ROOT / "recipes" / f"{recipe}.toml", environ={}), {"maxmemory": allowed}, "redis")
    assert size(redis["deploy"]["resources"]["limits"]["memory"]) >= 2 * allowed, "it is copied while it is written"


# -- those of its commands that run -----------------------------------------------------------------------------------


def scrape_configuration(folder: Path, run: str) -> Path:
    """What the service makes of the file that it mounts, by the command that it has."""
    line = next(line for line in composed()["services"]["prometheus"]["command"][0].splitlines() if "sed " in line)
    made = folder / "prometheus.yml"
    script = line.replace("/etc/headrace/prometheus.yml", str(SCRAPED)).replace("/tmp/prometheus.yml", str(made))
    subprocess.run(["sh", "-euc", script], env={"PATH": os.environ["PATH"], "RUN": run}, check=True)
    return made


def test_prometheus_finds_every_replica_and_says_whose_it_is(tmp_path: Path) -> None:
    services = composed()["services"]
    for job in yaml.safe_load(scrape_configuration(tmp_path, "my.run-2").read_text())["scrape_configs"]:
        (found,) = job["dns_sd_configs"]
        image = "tools" if job["job_name"] == "exporter" else job["job_name"]
        assert (found["names"], found["type"], found["port"]) == ([job["job_name"]], "A", PORTS[image])
        assert set(services[job["job_name"]]["networks"]) & set(services["prometheus"]["networks"])
        assert job["relabel_configs"] == [{"target_label": "run", "replacement": "my.run-2"}]


def test_promtool_takes_what_prometheus_is_given(tmp_path: Path) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed: `apt install prometheus`")
    mounted = {volume.split(":")[1] for volume in composed()["services"]["prometheus"]["volumes"]}
    made = scrape_configuration(tmp_path, "demo")
    assert set(yaml.safe_load(made.read_text())["rule_files"]) <= mounted
    made.write_text(made.read_text().replace("/etc/headrace/rules", str(RULES)))
    done = subprocess.run([promtool, "check", "config", str(made)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_process_is_handed_its_own_password(tmp_path: Path) -> None:
    """With the service's own capabilities, from files that are somebody else's alone; twice, as after a restart."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can hand files to others")
    one = composed()["services"]["passwords"]
    write(tmp_path / "secrets", environ={})
    for file in (tmp_path / "secrets").iterdir():
        os.chown(file, 1234, 1234)
    for volume in one["volumes"]:
        (tmp_path / volume.split(":")[1].lstrip("/")).mkdir(parents=True)
    script = one["command"][0].replace("/run/secrets", str(tmp_path / "secrets"))
    script = script.replace("/passwords/", f"{tmp_path}/passwords/")
    rights = ",".join(["-all", *(f"+{name.lower()}" for name in one["cap_add"])])
    for _ in range(2):
        command = ["setpriv", f"--bounding-set={rights}", "--no-new-privs", *one["entrypoint"], script]
        subprocess.run(command, check=True, env={"PATH": os.environ["PATH"]})
    owners = {"generator": 10001, "learner": 10001, "monitor": 10001, "redis": 999}
    for role, owner in owners.items():
        for file in (tmp_path / "passwords" / role).iterdir():
            state = file.stat()
            assert (state.st_uid, state.st_gid, oct(state.st_mode & 0o777)) == (owner, owner, "0o400")
    for role in ("generator", "learner", "monitor"):
        (file,) = (tmp_path / "passwords" / role).iterdir()
        assert file.read_text() == (tmp_path / "secrets" / f"{role}.password").read_text()
    assert {file.name for file in (tmp_path / "passwords" / "redis").iterdir()} == {"users.acl", "password"}


@contextmanager
def redis_of(one: Document, folder: Path) -> Iterator[int]:
    """A server under the service's command line, with its users; its port."""
    write(folder, environ={})
    (folder / "monitor.password").rename(folder / "password")
    places = {"/run/secrets/headrace": str(folder), "/data": str(folder)}
    command = [next((w.replace(a, b) for a, b in places.items() if w.startswith(a)), w) for w in one["command"][1:]]
    port = free_port()
    command = [str(find_binary()), *command, "--bind", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder) as process:
        try:
            yield port
        finally:
            process.kill()


def test_redis_starts_and_is_healthy_once_it_answers(tmp_path: Path) -> None:
    one = composed()["services"]["redis"]
    (tmp_path / "bin").mkdir()
    if (client := shutil.which("valkey-cli") or shutil.which("redis-cli")) is None:
        pytest.skip("there is no redis-cli: `apt install redis-tools`")
    with redis_of(one, tmp_path / "redis") as port:
        stand_in = tmp_path / "bin" / "valkey-cli"
        stand_in.write_text(f'#!/bin/sh\nREDISCLI_AUTH="$VALKEYCLI_AUTH" exec {client} -p {port} "$@"\n')
        stand_in.chmod(0o755)
        shell, script = one["healthcheck"]["test"]
        assert shell == "CMD-SHELL"
        script = script.replace("/run/secrets/headrace", str(tmp_path / "redis"))

        def healthy() -> bool:
            path = f"{stand_in.parent}:{os.environ['PATH']}"
            return subprocess.run(["sh", "-c", script], env={"PATH": path}, capture_output=True).returncode == 0

        wait_until(healthy, "the check says so", 20)
        settings = BrokerSettings(password_file=tmp_path / "redis" / "password")
        with connect(settings, f"redis://monitor@127.0.0.1:{port}") as monitor:
            require(monitor)
            memory: Any = monitor.info("memory")
            assert (memory["maxmemory"], memory["maxmemory_policy"]) == (1 << 30, "noeviction")
            persistence: Any = monitor.info("persistence")
            assert persistence["aof_enabled"] == 1
        (tmp_path / "redis" / "password").write_text("another\n")
        assert not healthy(), "nobody but its own user can tell"
