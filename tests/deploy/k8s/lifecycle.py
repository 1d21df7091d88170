"""How each part begins and ends, and what its end means."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.deploy.k8s.build import Manifests, Pod, names, of, pods, selects

KINDS = {
    "redis": {"StatefulSet"},
    "generator": {"Deployment"},
    "exporter": {"Deployment"},
    "learner": {"Job", "JobSet"},
}


def lifecycle(manifests: Manifests) -> Iterator[str]:
    """A run ends, so its learner is a job, restarted until it is over; one Redis, one exporter; generators are many."""
    found = {pod.role: pod for pod in pods(manifests)}
    for role, pod in found.items():
        if pod.owner["kind"] not in KINDS.get(role, ()):
            yield f"{pod.name}: a {role} is no {pod.owner['kind']}"
        if role in ("redis", "exporter") and pod.owner["spec"].get("replicas") != 1:
            yield f"{pod.name}: more than one"
        if pod.owner["kind"] == "Job":
            yield from _job(pod)
        if pod.owner["kind"] == "JobSet":
            yield from _jobset(pod)
        if role == "exporter" and pod.owner["spec"].get("strategy") != {"type": "Recreate"}:
            yield f"{pod.name}: two of them at once"
        if role == "redis":
            yield from _redis(manifests, pod)
    if "generator" in found:
        yield from _many(manifests, found["generator"])


def _redis(manifests: Manifests, pod: Pod) -> Iterator[str]:
    spec = pod.owner["spec"]
    if spec["serviceName"] not in names(manifests, "Service"):
        yield f"{pod.name}: no Service {spec['serviceName']}"
    if set(spec.get("persistentVolumeClaimRetentionPolicy", {}).values()) != {"Retain"}:
        yield f"{pod.name}: its data goes with it"
    if [claim["spec"]["accessModes"] for claim in spec.get("volumeClaimTemplates", [])] != [["ReadWriteOnce"]]:
        yield f"{pod.name}: others could write to its data"


def _many(manifests: Manifests, generators: Pod) -> Iterator[str]:
    budgets = of(manifests, "PodDisruptionBudget")
    if not any(selects(one["spec"].get("selector"), generators.labels) for one in budgets):
        yield "no disruption budget of the generators"
    spread = {one["topologyKey"] for one in generators.spec.get("topologySpreadConstraints", [])}
    if any(
        one["whenUnsatisfiable"] != "ScheduleAnyway" for one in generators.spec.get("topologySpreadConstraints", [])
    ):
        yield f"{generators.name}: would rather wait than share a machine"
    if spread != {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}:
        yield f"{generators.name}: is spread over {spread}"
    update = generators.owner["spec"].get("strategy", {}).get("rollingUpdate", {})
    if update.get("maxSurge") != 0 or not re.fullmatch(r"[1-9]\d?%?", str(update.get("maxUnavailable"))):
        yield f"{generators.name}: a new one needs a machine before an old one has left"
    start = generators.containers[0].get("startupProbe", {})
    patience = start.get("failureThreshold", 0) * start.get("periodSeconds", 10)
    if generators.owner["spec"].get("progressDeadlineSeconds", 600) < patience:
        yield f"{generators.name}: is taken for failed while it may still start"


def _job(pod: Pod) -> Iterator[str]:
    if pod.spec.get("restartPolicy") != "OnFailure" or pod.owner["spec"].get("backoffLimit", 6) < 100:
        yield f"{pod.name}: is given up too soon"
    if pod.owner["spec"].get("podReplacementPolicy") != "Failed":
        yield f"{pod.name}: two of them at once"


def _jobset(pod: Pod) -> Iterator[str]:
    failure = pod.owner["spec"].get("failurePolicy", {})
    if failure.get("maxRestarts", 0) < 100:
        yield f"{pod.name}: is given up too soon"
    if failure.get("restartStrategy") != "BlockingRecreate":
        yield f"{pod.name}: new ranks could meet old ones"
    ignored = [rule for rule in failure.get("rules", []) if rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"]
    if [rule.get("onJobFailureReasons") for rule in ignored] != [["PodFailurePolicy"]]:
        yield f"{pod.name}: a drained node counts as a failure"
    network = pod.owner["spec"].get("network", {})
    if (network.get("enableDNSHostnames"), network.get("publishNotReadyAddresses")) != (True, True):
        yield f"{pod.name}: ranks do not find one another"
    for job in pod.owner["spec"]["replicatedJobs"]:
        spec = job["template"]["spec"]
        if spec.get("completionMode") != "Indexed" or spec.get("backoffLimit") != 0:
            yield f"{pod.name}: a rank that died would come back alone"
        if pod.spec.get("restartPolicy") != "Never" or job.get("replicas", 1) != 1:
            yield f"{pod.name}: one job, whose pods end for good"
        drained = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        if spec.get("podFailurePolicy") != {"rules": [drained]}:
            yield f"{pod.name}: does not know a drained node"
