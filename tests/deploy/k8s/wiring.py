"""Every name that is used means something: volumes, files in them, claims, selectors, ports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from tests.deploy.k8s.build import Manifest, Manifests, Pod, named, names, of, pods, selects

# Made by hand, once: deploy/k8s/README.md says how. Name → keys.
OUT_OF_BAND = {
    "redis-users": {"users.acl", "monitor.password"},
    "redis-learner": {"learner.password"},
    "redis-generator": {"generator.password"},
    "redis-monitor": {"monitor.password"},
    "hub-token": {"token"},
}
MAY_LACK = {"hub-token"}
WRITABLE = {"learner": ("/tmp", "/models", "/data"), "generator": ("/tmp", "/models"), "redis": ("/data",)} | {
    "exporter": ("/tmp",)
}


def volumes(manifests: Manifests) -> Iterator[str]:
    """What is mounted is there, what is there is mounted, and it exists."""
    maps = {one["metadata"]["name"]: set(one.get("data", {})) for one in of(manifests, "ConfigMap")}
    claims = names(manifests, "PersistentVolumeClaim")
    for pod in pods(manifests):
        mounts = [mount for container in pod.containers for mount in container.get("volumeMounts", [])]
        for name in sorted({mount["name"] for mount in mounts} ^ set(pod.volumes)):
            yield f"{pod.name}: volume {name} is mounted and not there, or there and not mounted"
        if len({mount["mountPath"] for mount in mounts}) < len(mounts):
            yield f"{pod.name}: two volumes at one path"
        for name, volume in pod.volumes.items():
            yield from (f"{pod.name}, volume {name}: {what}" for what in _volume(volume, maps, claims))
            fixed = "configMap" in volume or "secret" in volume
            if fixed and not all(mount.get("readOnly") for mount in mounts if mount["name"] == name):
                yield f"{pod.name}: volume {name} could be written to"
        if pod.role in ("learner", "generator") and _medium(pod, "/dev/shm") != "Memory":
            yield f"{pod.name}: /dev/shm is not in memory"
        for path in WRITABLE.get(pod.role, ()):
            mount = pod.mount(path)
            if mount is None or mount["mountPath"] != path or mount.get("readOnly"):
                yield f"{pod.name}: {path} cannot be written to"
    used = {v["persistentVolumeClaim"]["claimName"] for p in pods(manifests) for v in p.volumes.values() if claimed(v)}
    yield from (f"PersistentVolumeClaim/{name}: nobody uses it" for name in claims - used)


def claimed(volume: Manifest) -> bool:
    """It is a claim that somebody else made."""
    return "persistentVolumeClaim" in volume


def _medium(pod: Pod, path: str) -> str | None:
    mount = pod.mount(path)
    found: str | None = pod.volumes.get(mount["name"], {}).get("emptyDir", {}).get("medium") if mount else None
    return found


def _volume(volume: Manifest, maps: Mapping[str, set[str]], claims: set[str]) -> Iterator[str]:
    if "configMap" in volume and volume["configMap"]["name"] not in maps:
        yield f"no ConfigMap {volume['configMap']['name']}"
    if claimed(volume) and volume["persistentVolumeClaim"]["claimName"] not in claims:
        yield f"no claim {volume['persistentVolumeClaim']['claimName']}"
    secret = volume.get("secret", {"secretName": "redis-users", "defaultMode": 0o440})
    if secret["secretName"] not in OUT_OF_BAND:
        yield f"nobody makes a Secret {secret['secretName']}"
    if secret.get("optional", False) != (secret["secretName"] in MAY_LACK):
        yield "a Secret that may lack, or has to be there, and is not treated so"
    if secret.get("defaultMode") != 0o440:
        yield f"mode {secret.get('defaultMode')} of a secret's files is not 0440"


def files(manifests: Manifests) -> Iterator[str]:
    """Every path that a command or a variable names lies in a volume, and in a mounted document where it is one."""
    keys = {one["metadata"]["name"]: one.get("data", {}) for one in of(manifests, "ConfigMap")}
    for pod in pods(manifests):
        for path in sorted(_paths(pod, keys)):
            mount = pod.mount(path)
            if mount is None:
                yield f"{pod.name}: nothing is mounted where {path} should be"
                continue
            volume, inside = pod.volumes.get(mount["name"], {}), path[len(mount["mountPath"]) :].lstrip("/")
            if "configMap" in volume and inside not in keys.get(volume["configMap"]["name"], {}):
                yield f"{pod.name}: {path} is no key of its ConfigMap"
            if "secret" in volume and inside not in OUT_OF_BAND.get(volume["secret"]["secretName"], ()):
                yield f"{pod.name}: {path} is no key of its Secret"


def _paths(pod: Pod, maps: Mapping[str, Mapping[str, str]]) -> set[str]:
    words = [word for container in pod.containers for word in container.get("args", [])]
    words += [value for value in pod.environment.values() if value.startswith("/")]
    for container in pod.containers:
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            command = container.get(kind, {}).get("exec", {}).get("command", [])
            words += re.findall(r"\$\(cat (\S+)\)", " ".join(command))
    if pod.role == "redis":
        said = [maps.get(volume["configMap"]["name"], {}) for volume in pod.volumes.values() if "configMap" in volume]
        words += re.findall(r"(?m)^(?:aclfile|dir) (\S+)$", "\n".join(text for one in said for text in one.values()))
    return {word for word in words if word.startswith("/")}


def selectors(manifests: Manifests) -> Iterator[str]:
    """Each selects somebody; a Service's port is served by all whom it selects."""
    found = list(pods(manifests))
    for where, selector in _selectors(manifests):
        if not any(selects(selector, pod.labels) for pod in found):
            yield f"{where} selects nobody"
    for pod in found:
        own = pod.owner["spec"].get("selector")
        if own is not None and not selects(own, pod.labels):
            yield f"{pod.name}: does not select its own pods"
        if own is not None and sum(selects(own, other.labels) for other in found) > 1:
            yield f"{pod.name}: selects others' pods as well"
    for service in of(manifests, "Service"):
        selected = [p for p in found if selects({"matchLabels": service["spec"].get("selector", {})}, p.labels)]
        if not service["spec"].get("selector") or len(selected) != 1:
            yield f"{named(service)}: selects {len(selected)} of the pods"
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            if any(target not in {*pod.ports, *pod.ports.values()} for pod in selected):
                yield f"{named(service)}: port {target} is not served"


def _selectors(manifests: Manifests) -> Iterator[tuple[str, Manifest]]:
    """Those of our own pods."""
    for one in of(manifests, "PodDisruptionBudget", "PodMonitor"):
        yield named(one), one["spec"].get("selector") or {"matchLabels": {"": ""}}
    for one in of(manifests, "NetworkPolicy"):
        yield named(one), one["spec"]["podSelector"]
        rules = [*one["spec"].get("ingress", []), *one["spec"].get("egress", [])]
        for peer in (peer for rule in rules for peer in [*rule.get("from", []), *rule.get("to", [])]):
            if "podSelector" in peer and "namespaceSelector" not in peer:
                yield f"a peer of {named(one)}", peer["podSelector"]
    for pod in pods(manifests):
        for spread in pod.spec.get("topologySpreadConstraints", []):
            yield f"a topology spread of {pod.name}", spread.get("labelSelector") or {"matchLabels": {"": ""}}
        affinity = pod.spec.get("affinity", {}).get("podAffinity", {})
        for term in affinity.get("requiredDuringSchedulingIgnoredDuringExecution", []):
            yield f"an affinity of {pod.name}", term["labelSelector"]
