"""Makes the virtual environment and installs a lock into it: one line a phase, one line on failure (exit status 2).

Invariant: on a CPU the torch that ends up installed is a CPU build, found without downloading a CUDA one on the way.
Runs under the system's Python, so it knows the standard library only; `make install` and `make test` call it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE.parent / ".venv"
PYTHON = VENV / "bin" / "python"
DEVICE_FILE = VENV / ".device"
LOG = VENV / "install.log"
LOCKS = {"cpu": "cpu.txt", "cuda": "gpu.txt"}
ROLES = {  # what less than a whole run needs, as the container images do: lock by device
    "learner": {"cpu": "learner-cpu.txt", "cuda": "learner-gpu.txt"},
    "tools": {"cpu": "tools.txt", "cuda": "tools.txt"},
}
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE = "import torch; print(torch.__version__, torch.version.cuda or 'none')"


class Failed(Exception):
    """The message is the one line that the user reads."""


@contextmanager
def phase(text: str) -> Iterator[None]:
    """One line: what begins now, and how long it took."""
    print(f"{text} … ", end="", flush=True)
    started = time.monotonic()
    try:
        yield
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"{time.monotonic() - started:.0f} s", flush=True)


def pip(*arguments: str) -> str | None:
    """Run `pip install --no-deps` in .venv, output to the log; None if it worked, else pip's last word."""
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += arguments
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    with LOG.open("a") as log:
        log.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
    if done.returncode == 0:
        return None
    words = done.stderr.strip().splitlines()
    errors = [line for line in words if line.startswith("ERROR")]
    return (errors or words or [f"exit status {done.returncode}"])[-1]


def make_venv(device: str) -> None:
    """Create .venv unless a usable one for this device is there; two devices' builds of vLLM do not mix in one."""
    known = DEVICE_FILE.read_text().strip() if DEVICE_FILE.exists() else device
    if not PYTHON.exists() or not shutil.which("pip", path=str(PYTHON.parent)) or known != device:
        version = ".".join(map(str, sys.version_info[:3]))
        if sys.version_info < (3, 11):  # noqa: UP036  (whatever the machine calls python3 comes here)
            raise Failed(f"{sys.executable} is Python {version}, too old: PYTHON=python3.11 make install (or newer)")
        with phase(f"environment .venv, Python {version}"):
            command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
            if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
                raise Failed(f"{sys.executable} -m venv does not work: install python3-venv, or set PYTHON=…")
    DEVICE_FILE.write_text(device + "\n")


def torch_sources(device: str, version: str) -> list[tuple[str, list[str]]]:
    """Where to ask for torch, in order: (name, pip's arguments).

    The local version `+cpu` is what keeps the search cheap: an index that has only CUDA builds offers nothing under it.
    Some CPU builds carry no such suffix: macOS has no other kind, and TORCH_INDEX_URL is the user's word.
    """
    if index := os.environ.get("TORCH_INDEX_URL"):
        return [("TORCH_INDEX_URL", ["--retries", "1", "--index-url", index, f"torch=={version}"])]
    if device == "cuda":
        return [("pip's indexes", [f"torch==={version}"])]
    if sys.platform == "darwin":
        return [("pip's indexes", [f"torch=={version}"])]
    ours = ["--index-url", CPU_INDEX, "--retries", "1", "--timeout", "15", f"torch=={version}+cpu"]
    return [("pip's indexes", ["--retries", "1", f"torch=={version}+cpu"]), ("PyTorch's CPU index", ours)]


def install_torch(device: str, version: str) -> None:
    """Install torch from the first source that has the right build."""
    sources = torch_sources(device, version)
    with phase(f"torch {version} for {device}"):
        if all(pip(*arguments) for _, arguments in sources):
            asked = " nor ".join(name for name, _ in sources)
            other = "cpu" if device == "cuda" else "cuda"
            raise Failed(
                f"no {device} build of torch {version} from {asked} (log: .venv/install.log): "
                f"set TORCH_INDEX_URL=… make install, or DEVICE={other}"
            )


def install_lock(lock: Path) -> None:
    """Install every pin of the lock as it stands; what is already there is left alone."""
    count = sum("==" in line for line in lock.read_text().splitlines())
    with phase(f"{count} packages of requirements/{lock.name}"):
        if word := pip("-r", str(lock)):
            raise Failed(f"requirements/{lock.name}: {word} (log: .venv/install.log)")


def torch_version(lock: Path) -> str | None:
    """The version of torch that the lock pins, None where it has none."""
    pins = [line.split("==")[1] for line in lock.read_text().splitlines() if line.startswith("torch==")]
    return pins[0] if pins else None


def check_torch(device: str) -> None:
    """Refuse the other device's build."""
    done = subprocess.run([str(PYTHON), "-c", PROBE], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"torch does not import: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    found, cuda = done.stdout.split()
    if (device == "cuda") != (cuda != "none"):
        raise Failed(f"torch {found} is built for CUDA {cuda}, not for {device}: set TORCH_INDEX_URL=… make install")
    print(f"torch {found} imports, CUDA {cuda}")


def main() -> None:
    """Install the device's lock, a role's part of it, or with --dev what tests and lint add to it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=sorted(LOCKS), default="cpu")
    parser.add_argument("--role", choices=sorted(ROLES), help="only what this role needs; default: everything")
    parser.add_argument("--dev", action="store_true", help="install dev.txt into the environment that is there")
    arguments = parser.parse_args()
    if arguments.dev:
        install_lock(HERE / "dev.txt")
        return
    lock = HERE / ROLES.get(arguments.role, LOCKS)[arguments.device]
    make_venv(arguments.device)
    LOG.write_text("")
    version = torch_version(lock)
    if version is not None:
        install_torch(arguments.device, version)
    install_lock(lock)
    if version is not None:
        check_torch(arguments.device)


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        print(f"make install: {failure}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
