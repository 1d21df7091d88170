"""`make up|down|logs|scale ENV=compose` (or `k8s`): the same verbs where somebody else supervises the processes.

Invariant: what is done is what `DRY=1` prints, and no secret is ever printed. Needs docker or kubectl and nothing else,
not even our own packages. Refuses to know what the manifests say.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from broker.errors import Refused

# What pods are given of the folder that `make acl` made; the admin's password stays with a person.
SECRETS = {
    "redis-users": ("users.acl", "monitor.password"),
    "redis-learner": ("learner.password",),
    "redis-generator": ("generator.password",),
    "redis-monitor": ("monitor.password",),
}
NAMESPACE = "headrace"
COMPOSE = ["docker", "compose", "-f", "deploy/compose.yaml"]
ON_A_GPU = ["-f", "deploy/compose.gpu.yaml"]
KUBECTL = ["kubectl", "-n", NAMESPACE]
MANIFESTS = Path("deploy/k8s")
APPLY = [*KUBECTL, "apply", "-f", "-"]
Step = list[list[str]]  # one command, or several that are a pipe


def generators(text: str) -> int:
    """How many generators `N=…` asks for. Raises `Refused`."""
    if not re.fullmatch(r"\d{1,4}", text, re.ASCII):
        raise Refused(f"N is {text!r} and must be a number from 0 to 9999", "`make scale N=3`")
    return int(text)


class Compose:
    """Containers of this machine."""

    program, remedy = "docker", "install Docker with its compose plugin"

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.compose = [*COMPOSE, *(ON_A_GPU if options.device == "cuda" else [])]

    def up(self) -> list[Step]:
        """Build what has changed and start it all."""
        _require_secrets(self.options)
        return [[[*self.compose, "up", "--detach", "--build"]]]

    def down(self) -> list[Step]:
        """End all; volumes stay unless they were named."""
        return [[[*self.compose, "down", *(["--volumes"] if self.options.volumes else [])]]]

    def logs(self) -> list[Step]:
        """Of all, or of one service."""
        follow = ["--follow"] if self.options.follow else []
        role = [self.options.role] if self.options.role else []
        return [[[*self.compose, "logs", *follow, "--tail", str(self.options.lines), *role]]]

    def scale(self) -> list[Step]:
        """Generators alone: whatever else has been stopped stays so."""
        count = generators(self.options.count)
        go_on = ["up", "--detach", "--no-recreate", "--no-deps"]
        return [[[*self.compose, *go_on, "--scale", f"generator={count}", "generator"]]]


class Kubernetes:
    """Pods of the cluster that kubectl's present context names."""

    program, remedy = "kubectl", "install it, and choose the cluster by `kubectl config use-context`"

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.overlay = MANIFESTS / "overlays" / options.overlay

    def up(self) -> list[Step]:
        """The namespace, then the secrets, then everything that needs them."""
        self._require_overlay()
        _require_secrets(self.options)
        namespace = ["kubectl", "apply", "-f", str(MANIFESTS / "base" / "namespace.yaml")]
        secrets = [self._secret(name, files) for name, files in SECRETS.items()]
        return [[namespace], *secrets, [["kubectl", "apply", "-k", str(self.overlay)]]]

    def down(self) -> list[Step]:
        """End all; the volumes, and the namespace that holds them, stay unless they were named."""
        self._require_overlay()
        if self.options.volumes:
            return [[["kubectl", "delete", "--ignore-not-found", "-k", str(self.overlay)]]]
        kept = [sys.executable, "-m", "deploy.keep_data"]
        delete = ["kubectl", "delete", "--ignore-not-found", "-f", "-"]
        return [[["kubectl", "kustomize", str(self.overlay)], kept, delete]]

    def logs(self) -> list[Step]:
        """Of all pods, or of one component's."""
        selector = f"app.kubernetes.io/part-of={NAMESPACE}"
        if self.options.role:
            selector += f",app.kubernetes.io/component={self.options.role}"
        follow = ["--follow", "--max-log-requests=50"] if self.options.follow else []
        of = ["--prefix", "--all-containers", "-l", selector, f"--tail={self.options.lines}"]
        return [[[*KUBECTL, "logs", *follow, *of]]]

    def scale(self) -> list[Step]:
        """Generators; where KEDA scales them it will do so again."""
        count = generators(self.options.count)
        return [[[*KUBECTL, "scale", "deployment/generator", f"--replicas={count}"]]]

    def _secret(self, name: str, files: tuple[str, ...]) -> Step:
        sources = [f"--from-file={Path(self.options.secrets) / file}" for file in files]
        create = ["create", "secret", "generic", name, *sources, "--dry-run=client", "-o", "yaml"]
        return [[*KUBECTL, *create], APPLY]

    def _require_overlay(self) -> None:
        known = sorted(path.parent.name for path in (MANIFESTS / "overlays").glob("*/kustomization.yaml"))
        if self.options.overlay not in known:
            raise Refused(f"no overlay {self.options.overlay!r}", f"OVERLAY is one of {', '.join(known)}")


def _require_secrets(options: argparse.Namespace) -> None:
    """Raises `Refused` where a role would come up without its password."""
    for name in sorted({name for names in SECRETS.values() for name in names}):
        if not options.dry and not (Path(options.secrets) / name).is_file():
            raise Refused(f"there is no {Path(options.secrets) / name}", "`make acl` makes the users of Redis")


def run(step: Step) -> None:
    """One command, or several as a pipe, to the end. Raises `SystemExit` with the status of the first that failed."""
    running: list[subprocess.Popen[bytes]] = []
    for command in step:
        last = command is step[-1]
        source = running[-1].stdout if running else None
        running.append(subprocess.Popen(command, stdin=source, stdout=None if last else subprocess.PIPE))
        if source:
            source.close()  # so that a writer whose reader has ended notices
    failed = [status for status in [process.wait() for process in running] if status]
    if failed:
        raise SystemExit(failed[0])


def do(steps: list[Step], dry: bool) -> None:
    """All of them in order; the last becomes this process if it is one command, so that Ctrl-C is its own."""
    for step in steps:
        if dry:
            print(" | ".join(shlex.join(command) for command in step), flush=True)
        elif step is steps[-1] and len(step) == 1:
            os.execvp(step[0][0], step[0])
        else:
            run(step)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="headrace", description="a run in containers or on Kubernetes")
    parser.add_argument("verb", choices=("up", "down", "logs", "scale"))
    parser.add_argument("--env", choices=("compose", "k8s"), required=True)
    parser.add_argument("--overlay", default="cpu", help="of deploy/k8s/overlays")
    parser.add_argument("--device", default="cpu", help="cuda: containers are given the GPUs")
    parser.add_argument("--secrets", default="secrets", help="the folder that `make acl` made")
    parser.add_argument("--count", default="", help="how many generators")
    parser.add_argument("--role", default="", help="generator, learner, redis, …: the logs of these alone")
    parser.add_argument("--lines", default="20", help="so many of each log to begin with")
    parser.add_argument("--no-follow", dest="follow", action="store_false", help="what there is, and no more")
    parser.add_argument("--volumes", action="store_true", help="of down: with all data")
    parser.add_argument("--dry", action="store_true", help="print the commands and run none")
    return parser.parse_args()


def main() -> None:
    """Entry point."""
    options = parsed()
    engine = Compose(options) if options.env == "compose" else Kubernetes(options)
    try:
        steps: list[Step] = getattr(engine, options.verb)()
        if not options.dry and shutil.which(engine.program) is None:
            raise Refused(f"ENV={options.env} needs {engine.program}, which is not on the path", engine.remedy)
        do(steps, options.dry)
    except Refused as error:
        print(f"headrace: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
