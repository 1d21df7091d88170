"""What a recipe needs of machines: GPUs, pods, disk, and a way for the weights."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.recipe import Recipe
from tests.deploy.k8s.build import Manifest, Manifests, Pod, named, of, pods, quantity
from tests.deploy.k8s.recipes import PARAMETERS, on_disk, recipe_of, size, version_bytes

CHECKPOINT_BYTES = 12  # a parameter: fp32 and AdamW's two moments


def machines(manifests: Manifests) -> Iterator[str]:
    """A GPU for each process that wants one, a pod for each node, disk for checkpoints, one place for the weights."""
    recipe, found = recipe_of(manifests), {pod.role: pod for pod in pods(manifests)}
    if recipe is None or not {"learner", "generator"} <= set(found):
        return
    learner, generator = found["learner"], found["generator"]
    on_gpus = "cuda" in generator.containers[0]["image"]
    for pod, processes in ((learner, recipe.learner.ranks), (generator, recipe.generator.tensor_parallel)):
        gpus = int(pod.containers[0].get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0))
        if gpus != processes * on_gpus or ("cuda" in pod.containers[0]["image"]) != on_gpus:
            yield f"{pod.name}: {gpus} GPUs for {processes} processes of {pod.containers[0]['image']}"
        tolerations = pod.spec.get("tolerations", [])
        if on_gpus and {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} not in tolerations:
            yield f"{pod.name}: is kept off nodes with GPUs"
    yield from _models(manifests, recipe, (learner, generator))
    yield from _nodes(recipe, learner)
    yield from _disk(manifests, recipe, learner)
    yield from _weights(manifests, recipe, learner, generator)


def _models(manifests: Manifests, recipe: Recipe, both: tuple[Pod, ...]) -> Iterator[str]:
    """Room for the model as it is fetched, in fp32 at most, and once more while that goes on."""
    for pod in both:
        volume = pod.volumes.get((pod.mount("/models") or {"name": ""})["name"], {})
        claim = _claim(manifests, volume)
        room = size(claim) if claim else quantity(volume.get("emptyDir", {}).get("sizeLimit", 0))
        if room < 2 * 4 * PARAMETERS[recipe.run.model]:
            yield f"{pod.name}: {room / 1e9:.1f} GB for {recipe.run.model}"
        if claim and claim["spec"]["accessModes"] != ["ReadWriteOnce"]:
            yield f"{named(claim)}: is {claim['spec']['accessModes']}"


def _nodes(recipe: Recipe, learner: Pod) -> Iterator[str]:
    nodes = recipe.learner.nodes
    jobs = learner.owner["spec"].get("replicatedJobs", [])
    found = [(job["template"]["spec"].get("completions"), job["template"]["spec"].get("parallelism")) for job in jobs]
    if found != ([(nodes, nodes)] if nodes > 1 else []):
        yield f"{learner.name}: pods {found} for learner.nodes = {nodes}"
    ranked = {"NODE_RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(learner.environment)
    if ranked != (nodes > 1):
        yield f"{learner.name}: what torchrun reads is {'there' if ranked else 'not there'} for {nodes} nodes"
    if ranked and not learner.environment["MASTER_PORT"].isdecimal():
        yield f"{learner.name}: no port {learner.environment['MASTER_PORT']}"
    rank = [one for one in learner.containers[0]["env"] if one["name"] == "NODE_RANK"]
    path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    if rank and rank[0].get("valueFrom") != {"fieldRef": {"fieldPath": path}}:
        yield f"{learner.name}: takes its rank from {rank[0].get('valueFrom')}"


def _disk(manifests: Manifests, recipe: Recipe, learner: Pod) -> Iterator[str]:
    mount = learner.mount(learner.environment.get("HEADRACE_RUN__DIRECTORY", "runs"))
    source = learner.volumes.get(mount["name"], {}) if mount else {}
    claim = _claim(manifests, source)
    if claim is None:
        yield f"{learner.name}: its runs do not outlive it"
        return
    kept = recipe.learner.keep_checkpoints + 1
    own = recipe.policy.backend == "redis"  # then it keeps versions itself
    needed = PARAMETERS[recipe.run.model] * (CHECKPOINT_BYTES * kept + 4)
    needed += on_disk(recipe) * version_bytes(recipe) * own
    if size(claim) < needed:
        yield f"{named(claim)}: {size(claim) / 1e9:.1f} GB for {needed / 1e9:.1f} GB of checkpoints"
    wanted = "ReadWriteMany" if recipe.learner.nodes > 1 else "ReadWriteOnce"
    if claim["spec"]["accessModes"] != [wanted]:
        yield f"{named(claim)}: is {claim['spec']['accessModes']}, not {wanted}"


def _claim(manifests: Manifests, volume: Manifest) -> Manifest | None:
    name = volume.get("persistentVolumeClaim", {}).get("claimName")
    return next((one for one in of(manifests, "PersistentVolumeClaim") if one["metadata"]["name"] == name), None)


def _weights(manifests: Manifests, recipe: Recipe, learner: Pod, generator: Pod) -> Iterator[str]:
    """Through one shared volume, or through Redis and then by none; a version that is fetched fits into /tmp."""
    version = version_bytes(recipe)
    folders = [pod.environment.get("HEADRACE_POLICY__DIRECTORY") for pod in (learner, generator)]
    if recipe.policy.backend == "redis":
        if folders != [None, None]:
            yield f"weights go through Redis, and there are the folders {folders}"
        tmp = generator.volumes.get((generator.mount("/tmp") or {"name": ""})["name"], {})
        if quantity(tmp.get("emptyDir", {}).get("sizeLimit", 0)) < 2 * version:
            yield f"{generator.name}: /tmp is too small for a version of {version / 1e9:.1f} GB and the next"
        return
    mounts = [pod.mount(folder or "runs") for pod, folder in zip((learner, generator), folders, strict=True)]
    claims = [
        pod.volumes.get(mount["name"], {}).get("persistentVolumeClaim", {}).get("claimName") if mount else None
        for pod, mount in zip((learner, generator), mounts, strict=True)
    ]
    if folders[0] != folders[1] or claims[0] is None or claims[0] != claims[1]:
        yield f"weights are written to {folders[0]} of {claims[0]}, and looked for in {folders[1]} of {claims[1]}"
        return
    if (mounts[0] or {}).get("readOnly") or not (mounts[1] or {}).get("readOnly"):
        yield "the learner alone writes weights"
    claim = _claim(manifests, learner.volumes.get((mounts[0] or {"name": ""})["name"], {}))
    if claim is not None and claim["spec"]["accessModes"] != ["ReadWriteOnce"]:
        yield f"{named(claim)}: is {claim['spec']['accessModes']}"
    if claim is None or size(claim) < on_disk(recipe) * version:
        yield f"the volume of the weights is too small for versions of {version / 1e9:.1f} GB"
