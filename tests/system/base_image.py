"""A base image where no registry can be reached: Debian of this machine's release, made of its packages.

It stands in for the image that deploy/Dockerfile names: the same system, Debian's Python in place of its own build.
Needs root and mmdebstrap.
"""

from __future__ import annotations

import platform
import subprocess
import tempfile
from pathlib import Path

from tests.system.engine import Engine

STAND_IN = "localhost/headrace-base:stand-in"
PACKAGES = "python3,python3-dev,python3-venv,ca-certificates"  # torch compiles against Python's headers
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"  # this machine's, which may know more than Debian's
# As Debian's own images have it: no package lists and archives stay behind.
CLEAN = """
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
DPkg::Post-Invoke {"rm -f /var/cache/apt/archives/*.deb";};
"""


def stand_in(engine: Engine) -> str:
    """What it is called; it is made unless it is there."""
    if engine.call("image", "inspect", STAND_IN, check=False).returncode == 0:
        return STAND_IN
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = ["mmdebstrap", "-q", "--variant=minbase", f"--include={PACKAGES}", release, f"{folder}/root.tar"]
        subprocess.run(command, check=True)
        (folder / "ca.crt").write_bytes(Path(CERTIFICATES).read_bytes())
        (folder / "clean").write_text(CLEAN)
        lines = ["FROM scratch", "ADD root.tar /", f"COPY ca.crt {CERTIFICATES}", "COPY clean /etc/apt/apt.conf.d/"]
        (folder / "Dockerfile").write_text("\n".join([*lines, "RUN ln -s python3 /usr/bin/python", ""]))
        engine.call("build", *engine.build_flags, "-f", f"{folder}/Dockerfile", "-t", STAND_IN, str(folder))
    return STAND_IN
