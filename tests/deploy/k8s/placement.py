"""Which machines a pod may run on: beside the volume that it shares; spot machines, or on no account spot machines."""

from __future__ import annotations

from collections.abc import Iterator

from tests.deploy.k8s.build import COMPONENT, Manifest, Manifests, Pod, pods
from tests.deploy.k8s.wiring import claimed

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
# What machines are labelled with that may be taken away at short notice, and which of these also bear a taint.
SPOT = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
TAINTED = ("cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority")
SHORTEST_NOTICE = 15  # seconds that a pod is left of it
GPU = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
ON_SPOT = [{"key": key, "operator": "Equal", "value": SPOT[key], "effect": "NoSchedule"} for key in TAINTED]
GONE = [
    {"key": f"node.kubernetes.io/{why}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10}
    for why in ("unreachable", "not-ready")
]


def placement(manifests: Manifests) -> Iterator[str]:
    """Each pod is where it has to be, and where it may be."""
    found = {pod.role: pod for pod in pods(manifests)}
    spot = any("nodeAffinity" in pod.spec.get("affinity", {}) for pod in found.values())
    for pod in found.values():
        known = [GPU, *((*ON_SPOT, *GONE) if spot and pod.role == "generator" else ())]
        if any(one not in known for one in pod.spec.get("tolerations", [])):
            yield f"{pod.name}: tolerates {pod.spec['tolerations']}"
        if spot:
            yield from _spot(pod)
    if {"learner", "generator"} <= set(found):
        yield from _beside(found["learner"], found["generator"])


def _spot(pod: Pod) -> Iterator[str]:
    """Generators on such machines, whoever's they are; all others on none of them."""
    terms = pod.spec.get("affinity", {}).get("nodeAffinity", {}).get(REQUIRED, {}).get("nodeSelectorTerms")
    there, operator = pod.role == "generator", "In" if pod.role == "generator" else "NotIn"
    expressions = [{"key": key, "operator": operator, "values": [value]} for key, value in SPOT.items()]
    wanted = [{"matchExpressions": [one]} for one in expressions] if there else [{"matchExpressions": expressions}]
    if terms != wanted:
        yield f"{pod.name}: may be on {terms}"
    if there and not all(one in pod.spec.get("tolerations", []) for one in (*ON_SPOT, *GONE)):
        yield f"{pod.name}: is kept off machines that may be taken away, or stays bound to lost ones"
    if there and pod.spec.get("terminationGracePeriodSeconds", 30) > SHORTEST_NOTICE:
        yield f"{pod.name}: takes longer to leave than it is given"


def _beside(learner: Pod, generator: Pod) -> Iterator[str]:
    """On one machine if, and only if, they share a volume that one machine alone can mount."""
    shared = _claims(learner) & _claims(generator)
    terms = generator.spec.get("affinity", {}).get("podAffinity", {}).get(REQUIRED, [])
    labels = {"app.kubernetes.io/part-of": "headrace", COMPONENT: "learner"}
    wanted = [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": labels}}] if shared else []
    if terms != wanted:
        yield f"{generator.name}: shares {sorted(shared)} with the learner, and is placed by {terms}"


def _claims(pod: Pod) -> set[str]:
    volumes: list[Manifest] = [volume for volume in pod.volumes.values() if claimed(volume)]
    return {volume["persistentVolumeClaim"]["claimName"] for volume in volumes}
