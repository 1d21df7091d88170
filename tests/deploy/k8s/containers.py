"""Every container: bounded, probed, confined, of a named release, started as the code wants it, without a secret."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.deploy.k8s.build import Manifest, Manifests, Pod, pods, quantity

BOUNDED = ("cpu", "memory", "ephemeral-storage")
FIXED = ("memory", "ephemeral-storage", "nvidia.com/gpu")  # asked for in full, so that a full node takes nothing back
IMAGES = {"learner": "headrace/learner", "generator": "headrace/generator", "exporter": "headrace/tools"} | {
    "redis": "valkey/valkey"
}
COMMANDS = {
    "learner": ["tini", "--", "python", "-m", "deploy.role", "consumer"],
    "generator": ["tini", "--", "python", "-m", "deploy.role", "producer"],
    "exporter": ["tini", "--", "python", "-m", "monitoring.exporter"],
    "redis": ["valkey-server"],
}
RECIPE = ["/etc/headrace/recipe.toml"]
PATHS = {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
LEAST_START_SECONDS = {"redis": 600, "learner": 1800, "generator": 1800}  # loading; a model fetched and a cold engine
RELEASE = re.compile(r"\d+\.\d+\.\d+(-cuda)?(@sha256:[0-9a-f]{64})?")
PING = 'REDISCLI_AUTH="$(cat /run/secrets/headrace/monitor.password)" valkey-cli --user monitor ping | grep -qx PONG'
# Of ranks the first alone serves, and stands for all.
GET = "import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=4)"
OF_RANKS = '[ "$NODE_RANK" != 0 ] || exec python -c "$0" http://127.0.0.1:9400%s'
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|CREDENTIAL|API_?KEY", re.IGNORECASE)
BY_FILE = ("_FILE", "_PATH")
USER = 10001
CONFINED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def _all(manifests: Manifests) -> Iterator[tuple[str, Pod, Manifest]]:
    for pod in pods(manifests):
        for container in pod.containers:
            yield f"{pod.name}, container {container['name']}", pod, container


def resources(manifests: Manifests) -> Iterator[str]:
    """Requests and limits of everything; what cannot be taken back is requested in full; volumes fit into it."""
    for where, pod, container in _all(manifests):
        found = container.get("resources", {})
        requests, limits = found.get("requests", {}), found.get("limits", {})
        for name in BOUNDED:
            if name not in requests or name not in limits:
                yield f"{where}: no request or limit of {name}"
        for name in FIXED:
            if requests.get(name) != limits.get(name):
                yield f"{where}: requests {requests.get(name)} of {name}, may use {limits.get(name)}"
        for name in set(requests) & set(limits):
            if quantity(requests[name]) > quantity(limits[name]):
                yield f"{where}: requests more {name} than it may use"
        for medium, resource, share in (("", "ephemeral-storage", 1.0), ("Memory", "memory", 0.5)):
            dirs = [volume["emptyDir"] for volume in pod.volumes.values() if "emptyDir" in volume]
            room = sum(quantity(one.get("sizeLimit", "inf")) for one in dirs if one.get("medium", "") == medium)
            if room > share * quantity(limits.get(resource, 0)):
                yield f"{where}: its volumes may grow to {room / 2**30:.2f} GiB of {limits.get(resource)} {resource}"


def probes(manifests: Manifests) -> Iterator[str]:
    """Ready, alive and, where starting takes long, started: on the right path, at a port that is served."""
    for where, pod, container in _all(manifests):
        wanted = set(PATHS) - ({"startupProbe"} if pod.role == "exporter" else set())
        for kind in sorted(wanted - set(container)):
            yield f"{where}: no {kind}"
        for kind in wanted & set(container):
            yield from (f"{where}, {kind}: {what}" for what in _probe(pod, kind, container[kind]))
        start = container.get("startupProbe", {})
        if start.get("failureThreshold", 3) * start.get("periodSeconds", 10) < LEAST_START_SECONDS.get(pod.role, 0):
            yield f"{where}: too little time to start"


def _probe(pod: Pod, kind: str, probe: Manifest) -> Iterator[str]:
    if probe.get("timeoutSeconds", 1) < 4:
        yield "a busy process needs more time to answer"
    command, found = probe.get("exec", {}).get("command"), probe.get("httpGet", {})
    if pod.role == "redis":
        if command != ["sh", "-c", PING]:
            yield "a server that is loading would pass"
        return
    if pod.owner["kind"] == "JobSet":
        if command != ["sh", "-c", OF_RANKS % PATHS[kind], GET]:
            yield f"asks by {command}"
        return
    if found.get("path") != PATHS[kind]:
        yield f"asks for {found.get('path')}, not {PATHS[kind]}"
    if found.get("port") not in {*pod.ports, *pod.ports.values()}:
        yield f"port {found.get('port')} is not served"


def confinement(manifests: Manifests) -> Iterator[str]:
    """The restricted profile, and no more rights than it leaves: no root, no token, no writable image."""
    for pod in pods(manifests):
        context = pod.spec.get("securityContext", {})
        wanted: Manifest = {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
        wanted |= {"seccompProfile": {"type": "RuntimeDefault"}, "fsGroupChangePolicy": "OnRootMismatch"}
        if context != wanted:
            yield f"{pod.name}: its security context is {context}"
        for key, value in (("automountServiceAccountToken", False), ("enableServiceLinks", False)):
            if pod.spec.get(key) is not value:
                yield f"{pod.name}: {key} is {pod.spec.get(key)}"
        for key in ("hostNetwork", "hostPID", "hostIPC", "serviceAccountName", "shareProcessNamespace"):
            if key in pod.spec:
                yield f"{pod.name}: has {key}"
        for name, volume in pod.volumes.items():
            if not {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "template"} & set(volume):
                yield f"{pod.name}: volume {name} is of a kind that the restricted profile refuses, or of none"
    for where, _, container in _all(manifests):
        context = container.get("securityContext")
        if context != CONFINED:
            yield f"{where}: its security context is {context}"


def images(manifests: Manifests) -> Iterator[str]:
    """The role's image, of a release that has a number."""
    for where, pod, container in _all(manifests):
        name, _, tag = container["image"].partition(":")
        if container["name"] != pod.role:
            yield f"{where}: is not called {pod.role}"
        if name != IMAGES.get(pod.role):
            yield f"{where}: image {name}, not {IMAGES.get(pod.role)}"
        if not RELEASE.fullmatch(tag):
            yield f"{where}: tag {tag!r} is no release"


def commands(manifests: Manifests) -> Iterator[str]:
    """What the code can be started by."""
    for where, pod, container in _all(manifests):
        if container.get("command") != COMMANDS.get(pod.role):
            yield f"{where}: starts {container.get('command')}"
        if pod.role != "redis" and container.get("args") != RECIPE:
            yield f"{where}: arguments {container.get('args')}"


def secrets(manifests: Manifests) -> Iterator[str]:
    """None is written down: neither in a variable, nor in a URL, nor in a ConfigMap, nor as a Secret."""
    for where, _, container in _all(manifests):
        for one in container.get("env", []):
            if SECRET.search(one["name"]) and not one["name"].endswith(BY_FILE):
                yield f"{where}: {one['name']} is a secret that does not come by a file"
            if re.search(r"//[^/@]*:[^/@]*@", one.get("value", "")):
                yield f"{where}: {one['name']} holds a password"
    for one in manifests:
        if one.get("kind") == "Secret":
            yield f"{one['metadata']['name']}: a Secret does not belong among the manifests"
        for key, value in one.get("data", {}).items() if one.get("kind") == "ConfigMap" else ():
            if re.search(r"""(?im)^\s*(password|requirepass|masterauth|token)\b\s*[=\s]\s*["']?\w""", value):
                yield f"ConfigMap/{one['metadata']['name']}: {key} holds a password"
