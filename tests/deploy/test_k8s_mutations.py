"""A mistake in a manifest is found: every key and every word misspelt, one after the other, and those that people make.

What survives a misspelling are names that nothing refers to, and prose: `FREE` lists them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.k8s import schemas
from tests.deploy.k8s.build import (
    K8S,
    OVERLAYS,
    ROOT,
    Manifest,
    Unbuilt,
    manifests,
    named,
    needs_kubectl,
    parsed,
    rendered,
    text,
)
from tests.deploy.k8s.checks import problems

needs_schemas = pytest.mark.skipif(
    schemas.crds() is None, reason="CRD_SCHEMAS_DIR names no folder with schemas of custom resources"
)
pytestmark = [needs_kubectl, needs_schemas]

FREE = re.compile(
    r"(PriorityClass/\S+ description|Service/redis spec\.ports\.0\.name"
    r"|JobSet/learner spec\.failurePolicy\.rules\.0\.name"
    r"|(NetworkPolicy|PodMonitor|PodDisruptionBudget|ScaledObject)/\S+ metadata\.name"
    r"|StatefulSet/redis spec\.volumeClaimTemplates\.0\.metadata\.labels\..*"
    r"|\S+ metadata\.annotations\.checkov\.io/skip\d)"
)
ELSEWHERE = ("PrometheusRule/", "ConfigMap/dashboard")  # compared with what they are made of, in test_k8s_monitoring.py

# What people do: in which overlay and manifest, what was there, what is there instead.
MISTAKES = [
    ("cpu", "Deployment/generator", "limits:", "limitz:"),
    ("cpu", "Job/learner", "            memory: 6Gi\n          requests", "          requests"),
    ("cpu", "Job/learner", "path: /healthz", "path: /health"),
    ("cpu", "Deployment/exporter", "port: metrics", "port: metric"),
    ("cpu", "Deployment/exporter", "containerPort: 9401", "containerPort: 9400"),
    ("cpu", "Deployment/generator", "image: headrace/generator:0.1.0", "image: headrace/generator:latest"),
    ("cpu", "Deployment/generator", "image: headrace/generator:0.1.0", "image: headrace/generator"),
    ("cpu", "Job/learner", "image: headrace/learner", "image: headrace/generator"),
    ("cpu", "Job/learner", "- consumer", "- producer"),
    ("cpu", "Deployment/generator", "HEADRACE_BROKER__URL", "HEADRACE_BROKER_URL"),
    ("cpu", "Deployment/generator", "HEADRACE_BROKER__URL", "HEADRACE_BROKER__URI"),
    ("cpu", "Deployment/generator", "HEADRACE_BROKER__URL", "HEADRACE_BROKR__URL"),
    ("cpu", "Job/learner", "redis://learner@redis:6379", "redis://learner@redis:6380"),
    ("cpu", "Job/learner", "redis://learner@redis:6379", "redis://admin@redis:6379"),
    ("cpu", "Job/learner", "redis://learner@redis:6379", "redis://learner:secret@redis:6379"),
    ("cpu", "Job/learner", "redis://learner@redis:6379", "redis://learner@valkey:6379"),
    ("cpu", "Job/learner", "HEADRACE_BROKER__PASSWORD_FILE", "HEADRACE_BROKER__PASSWORD"),
    ("cpu", "Deployment/exporter", "value: 0.0.0.0", "value: 127.0.0.1"),
    ("cpu", "Job/learner", "secretName: redis-learner", "secretName: learner-redis"),
    ("cpu", "Job/learner", "claimName: learner-data", "claimName: data"),
    ("cpu", "Job/learner", "restartPolicy: OnFailure", "restartPolicy: Never"),
    ("cpu", "Job/learner", "mountPath: /dev/shm", "mountPath: /dev/shmem"),
    ("cpu", "Job/learner", "runAsNonRoot: true", "runAsNonRoot: false"),
    ("cpu", "Job/learner", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
    ("cpu", "Job/learner", "- ALL", "- NET_RAW"),
    ("cpu", "Job/learner", "automountServiceAccountToken: false", "automountServiceAccountToken: true"),
    ("cpu", "Job/learner", "priorityClassName: headrace-core", "priorityClassName: headrace-generator"),
    ("cpu", "PriorityClass/headrace-generator", "value: 1000", "value: 1000000"),
    ("cpu", "Deployment/generator", "terminationGracePeriodSeconds: 60", "terminationGracePeriodSeconds: 30"),
    ("cpu", "Deployment/generator", "failureThreshold: 180", "failureThreshold: 18"),
    ("cpu", "Deployment/generator", "maxSurge: 0", "maxSurge: 1"),
    ("cpu", "Deployment/generator", "claimName: policy", "claimName: models"),
    (
        "cpu",
        "Service/redis",
        "app.kubernetes.io/component: redis\n    app",
        "app.kubernetes.io/component: valkey\n    app",
    ),
    ("cpu", "Service/redis", "targetPort: redis", "targetPort: valkey"),
    ("cpu", "StatefulSet/redis", "value: 128mb", "value: 64mb"),
    ("cpu", "StatefulSet/redis", "memory: 320Mi", "memory: 200Mi"),
    ("cpu", "StatefulSet/redis", "- --maxmemory", "- --maxmemry"),
    ("cpu", "StatefulSet/redis", "grep -qx PONG", "grep -q ."),
    ("cpu", "StatefulSet/redis", "storage: 1Gi", "storage: 200Mi"),
    ("cpu", "PodDisruptionBudget/generator", "component: generator\n      app", "component: generators\n      app"),
    ("cpu", "PersistentVolumeClaim/learner-data", "storage: 10Gi", "storage: 1Gi"),
    ("cpu", "Namespace/headrace", "enforce: restricted", "enforce: baseline"),
    ("cpu", "NetworkPolicy/default-deny", "- Egress", "- Ingress"),
    ("cpu", "NetworkPolicy/redis-from-roles", "port: 6379", "port: 6380"),
    ("cpu", "NetworkPolicy/redis-from-roles", "- exporter", "- monitor"),
    ("cpu", "NetworkPolicy/roles-to-redis", "protocol: UDP", "protocol: TCP"),
    ("gpu", "NetworkPolicy/prometheus-to-metrics", "port: 9410", "port: 9411"),
    ("gpu", "NetworkPolicy/hub", "port: 443", "port: 80"),
    ("gpu", "NetworkPolicy/hub", "        - 169.254.0.0/16\n", ""),
    ("gpu", "PodMonitor/headrace", "port: metrics", "port: metric"),
    ("gpu", "PodMonitor/headrace", "targetLabel: run", "targetLabel: runs"),
    ("gpu", "PodMonitor/headrace", "jobLabel: app.kubernetes.io/component", "jobLabel: app.kubernetes.io/name"),
    ("gpu", "PodMonitor/headrace", "interval: 15s", "intervall: 15s"),
    ("gpu", "ScaledObject/generator", "keda.sh/v1alpha1", "keda.sh/v1"),
    ("gpu", "ScaledObject/generator", "generators_wanted:mean10m", "claimed_tickets:mean10m"),
    ("gpu", "ScaledObject/generator", 'namespace="headrace"', 'namespace="default"'),
    ("gpu", "ScaledObject/generator", 'threshold: "1"', 'threshold: "16"'),
    ("gpu", "ScaledObject/generator", "maxReplicaCount: 6", "maxReplicaCount: 12"),
    ("gpu", "Job/learner", 'nvidia.com/gpu: "2"', 'nvidia.com/gpu: "1"'),
    ("gpu", "Deployment/generator", "0.1.0-cuda", "0.1.0"),
    ("gpu", "Deployment/generator", "optional: true", "optional: false"),
    ("multi-node", "JobSet/learner", "parallelism: 2", "parallelism: 3"),
    ("multi-node", "JobSet/learner", "learner-ranks-0-0.learner", "learner-rank-0-0.learner"),
    ("multi-node", "JobSet/learner", "batch.kubernetes.io/job-completion-index", "batch.kubernetes.io/job-index"),
    ("multi-node", "JobSet/learner", "maxRestarts: 1000", "maxRestart: 1000"),
    ("multi-node", "JobSet/learner", "restartStrategy: BlockingRecreate", "restartStrategy: Recreate"),
    ("multi-node", "PersistentVolumeClaim/learner-data", "ReadWriteMany", "ReadWriteOnce"),
    ("multi-node", "StatefulSet/redis", "value: 24gb", "value: 4gb"),
    ("multi-node", "NetworkPolicy/ranks", "component: learner", "component: generator"),
    ("spot", "Deployment/generator", "terminationGracePeriodSeconds: 15", "terminationGracePeriodSeconds: 10"),
    ("spot", "Deployment/generator", "sizeLimit: 4Gi", "sizeLimit: 1Gi"),
]
# The same in what kustomize makes the manifests of.
IN_SOURCES = [
    ("gpu", "overlays/gpu/recipe.toml", "groups_per_step", "groups_per_stop"),
    ("gpu", "overlays/gpu/recipe.toml", 'name = "countdown"\nmodel', 'name = "countdown-2"\nmodel'),
    ("gpu", "overlays/gpu/recipe.toml", "drain_seconds = 300", "drain_seconds = 600"),
    ("cpu", "base/redis.conf", "appendfsync", "appendfsink"),
    ("cpu", "base/redis.conf", "noeviction", "allkeys-lru"),
    ("cpu", "base/kustomization.yaml", "newTag: 9.1.2", "newTag: latest"),
    ("cpu", "base/kustomization.yaml", "includeTemplates", "includeTemplate"),
    ("gpu", "overlays/gpu/learner.yaml", "name: learner\nspec", "name: learners\nspec"),
    (
        "gpu",
        "components/hub/kustomization.yaml",
        "name: learner}\n    path: token.yaml",
        "name: learn}\n    path: token.yaml",
    ),
    ("multi-node", "overlays/multi-node/jobset.yaml", "volumes/configMap/name", "volume/configMap/name"),
]


def caught(found: list[Manifest]) -> bool:
    """There is a problem."""
    return next(problems(found), None) is not None


def places() -> Iterator[tuple[list[Manifest], str, Any, Any]]:
    """Every place in what somebody wrote: an overlay's manifests, its name, what it lies in, and where in it.

    What several overlays have, once, in the first of them.
    """
    seen = set()
    for overlay in reversed(OVERLAYS):
        found = [one for one in manifests(overlay) if not named(one).startswith(ELSEWHERE)]
        assert not caught(found)
        for one in found:
            for path, node, key in [*_places(one, ())]:
                where = f"{re.sub('-[a-z0-9]{10}$', '', named(one))} {path}"
                if where not in seen:
                    yield found, where, node, key
                seen.add(where)


def _places(node: Any, path: tuple[object, ...]) -> Iterator[tuple[str, Any, Any]]:
    for key in [*node] if isinstance(node, dict) else range(len(node)):
        yield ".".join(map(str, (*path, key))), node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key], (*path, key))


def test_no_key_can_be_misspelt() -> None:
    survivors, count = [], 0
    for found, where, node, key in places():
        if isinstance(node, dict):
            count += 1
            value = node.pop(key)
            node[f"{key}x"] = value
            if not caught(found):
                survivors.append(where)
            del node[f"{key}x"]
            node[key] = value
    assert [where for where in survivors if not FREE.fullmatch(where)] == []
    assert count > 1000


def test_no_word_can_be_misspelt_but_names_that_nobody_uses() -> None:
    survivors, count = [], 0
    for found, where, node, key in places():
        value = node[key]
        if isinstance(value, str | bool):
            count += 1
            node[key] = not value if isinstance(value, bool) else f"{value}x"
            if not caught(found):
                survivors.append(where)
            node[key] = value
    assert [where for where in survivors if not FREE.fullmatch(where)] == []
    assert count > 600


@pytest.mark.parametrize(("overlay", "manifest", "old", "new"), MISTAKES)
def test_a_mistake_is_found(overlay: str, manifest: str, old: str, new: str) -> None:
    found, documents = manifests(overlay), text(overlay).split("\n---\n")
    (at,) = [number for number, one in enumerate(found) if named(one) == manifest]
    assert old in documents[at]
    (found[at],) = parsed(documents[at].replace(old, new))
    assert caught(found)


@pytest.mark.parametrize(("overlay", "file", "old", "new"), IN_SOURCES)
def test_a_mistake_in_a_source_is_found(overlay: str, file: str, old: str, new: str, tmp_path: Path) -> None:
    k8s = tmp_path / "deploy" / "k8s"
    for folder in ("deploy/k8s", "monitoring/grafana"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    source = (K8S / file).read_text(encoding="utf-8")
    assert old in source
    (k8s / file).write_text(source.replace(old, new), encoding="utf-8")
    try:
        built = rendered(k8s / "overlays" / overlay)
    except Unbuilt:
        return
    assert caught(parsed(built))
