"""The server's users: one for each role, as an ACL file of Redis 7 or Valkey, and their passwords.

Invariant: the ACL file holds no password, only what a server needs to check one; a password that lies in the folder is
its owner's alone and is never replaced. Refuses to know what a role may do.

    python -m broker.acl --out secrets [--run NAME]

A password comes from `HEADRACE_<ROLE>_PASSWORD` if that is set, else from `secrets/<role>.password`, which is made up
and written if it is not there.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from broker.cli import guarded
from broker.errors import Refused
from broker.roles import ANY, ROLES, Role, rules
from broker.secret import read_secret, write_secret
from broker.settings import ENV_PREFIX, RUN_NAME

FILE = "users.acl"
SHORTEST = 16  # characters: the file holds plain hashes, from which a short password can be guessed


def document(passwords: Mapping[Role, str], run: str = ANY) -> str:
    """The ACL file of one run, or of all. The user without a name, whom Redis lets do anything, is switched off."""
    lines = ["user default reset off"]
    for role, password in passwords.items():
        digest = hashlib.sha256(password.encode()).hexdigest()
        lines.append(" ".join(["user", role, f"#{digest}", *rules(role, run)]))
    return "\n".join([*lines, ""])


def password_file(folder: Path, role: Role) -> Path:
    """Where the password of a role lies."""
    return folder / f"{role}.password"


def password_of(folder: Path, role: Role, environ: Mapping[str, str]) -> str:
    """The password of a role: from the environment, from its file, else a new one. Raises `Refused`."""
    name, path = f"{ENV_PREFIX}{role.upper()}_PASSWORD", password_file(folder, role)
    if (password := environ.get(name)) is None:
        if not path.exists():
            write_secret(path, secrets.token_urlsafe(32) + "\n")
        name, password = str(path), read_secret(path, str(path))
    if len(password) < SHORTEST:
        raise Refused(f"{name} is shorter than {SHORTEST} characters", "a short one can be guessed from its hash")
    return password


def write(folder: Path, run: str = ANY, environ: Mapping[str, str] | None = None) -> Path:
    """Write the ACL file into `folder`, with the passwords that are not given. Raises `Refused`."""
    if run != ANY and not re.fullmatch(RUN_NAME, run):
        raise Refused(f"{run!r} is no name of a run", "give run.name, or leave it out for all runs")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = {role: password_of(folder, role, os.environ if environ is None else environ) for role in ROLES}
        write_secret(folder / FILE, document(found, run))
    except OSError as error:
        raise Refused(f"cannot write to {folder}: {error.strerror}", "choose another folder") from None
    return folder / FILE


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="broker.acl", description="make the server's users, one for each role")
    parser.add_argument("--out", type=Path, default=Path("secrets"), help="folder of the ACL file and the passwords")
    parser.add_argument("--run", default=ANY, help="name of the only run they may touch; default: all runs")
    options = parser.parse_args()
    path = write(options.out, options.run)
    print(f'{path}: users {", ".join(ROLES)}; for Redis\' option aclfile, or `make broker ARGS="--acl {options.out}"`')


if __name__ == "__main__":
    main()
