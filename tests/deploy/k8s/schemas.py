"""Shape: core kinds by Kubernetes' own schemas, custom ones by those of their operators. An unknown key is a problem.

Invariant: what nobody knows is a problem, too, so a misspelt kind or version never passes for a custom resource.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from kubernetes_validate import utils

from tests.deploy.k8s.build import Manifests, named, pods

utils.schema_contents = functools.cache(utils.schema_contents)  # it reads megabytes anew for every document otherwise
OLDEST, NEWEST = "1.31", kubernetes_validate.latest_version()  # what is written has to be known to both
CORE = {
    "v1": {"ConfigMap", "Namespace", "PersistentVolumeClaim", "Service"},
    "apps/v1": {"Deployment", "StatefulSet"},
    "batch/v1": {"Job"},
    "networking.k8s.io/v1": {"NetworkPolicy"},
    "policy/v1": {"PodDisruptionBudget"},
    "scheduling.k8s.io/v1": {"PriorityClass"},
}
CUSTOM = {
    "jobset.x-k8s.io/v1alpha2": {"JobSet"},
    "keda.sh/v1alpha1": {"ScaledObject"},
    "monitoring.coreos.com/v1": {"PodMonitor", "PrometheusRule"},
}
CLUSTER_WIDE = {"Namespace", "PriorityClass"}
METADATA = {"name", "namespace", "labels", "annotations"}


def crds() -> Path | None:
    """Where the schemas of custom resources are."""
    folder = os.environ.get("CRD_SCHEMAS_DIR")
    return Path(folder) if folder else None


def kinds(manifests: Manifests) -> Iterator[str]:
    """Versions and kinds that nobody knows; keys of metadata, which no schema of a custom resource tells."""
    known = CORE | CUSTOM
    for one in manifests:
        if one.get("kind") not in known.get(one.get("apiVersion", ""), ()):
            yield f"{named(one)}: no {one.get('kind')} in {one.get('apiVersion')}"
        metadata = one.get("metadata", {})
        for key in set(metadata) - METADATA:
            yield f"{named(one)}: unknown key metadata.{key}"
        if not isinstance(metadata.get("name"), str):
            yield f"a {one.get('kind')} without a name"


def quantities(manifests: Manifests) -> Iterator[str]:
    """Numbers with units that have some."""
    for one in manifests:
        for path, value in leaves(one):
            sized = path[-1] in ("storage", "sizeLimit") or path[-2:-1] in (("requests",), ("limits",))
            if sized and not re.fullmatch(r"\d+(\.\d+)?(m|[KMGT]i)?", str(value)):
                yield f"{named(one)}: {'.'.join(map(str, path))} is {value}"
    for pod in pods(manifests):
        if not re.fullmatch(r"\d+[kmg]b", pod.environment.get("MAXMEMORY", "1mb")):
            yield f"{pod.name}: maxmemory is {pod.environment['MAXMEMORY']}"


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value that is neither a list nor a mapping, and the way to it."""
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if inside is None:
        yield path, node
    for key, value in inside or ():
        yield from leaves(value, (*path, key))


def core(manifests: Manifests) -> Iterator[str]:
    """Core kinds against the oldest and the newest Kubernetes."""
    for one in manifests:
        if one.get("apiVersion") in CORE:
            yield from _core(json.dumps(one, sort_keys=True))


@functools.cache  # most manifests are the same in several overlays and mutations
def _core(document: str) -> tuple[str, ...]:
    one = json.loads(document)
    try:
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(one, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (f"{named(one)}: {'.'.join(map(str, error.path))}: {error.message[:200]}",)
    except kubernetes_validate.SchemaNotFoundError as error:
        return (f"{named(one)}: {error.message}",)
    return ()


def custom(manifests: Manifests) -> Iterator[str]:
    """Custom resources; nothing where their schemas are not at hand."""
    folder = crds()
    for one in manifests:
        if folder is not None and one.get("apiVersion") in CUSTOM:
            version = one["apiVersion"].rpartition("/")[2]
            yield from _custom(folder / f"{one['kind'].lower()}_{version}.json", json.dumps(one, sort_keys=True))


@functools.cache
def _custom(path: Path, document: str) -> tuple[str, ...]:
    one = json.loads(document)
    if not path.exists():
        return (f"{named(one)}: no schema {path.name}",)
    errors = jsonschema.Draft7Validator(_schema(path)).iter_errors(one)
    return tuple(f"{named(one)}: {'.'.join(map(str, error.path))}: {error.message[:200]}" for error in errors)


@functools.cache
def _schema(path: Path) -> Any:
    return strict(json.loads(path.read_text()))


def strict(schema: Any) -> Any:
    """`schema`, in which an object has no other properties than those it names, unless it says that it may."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed
