"""The server's users: one for each role, as an ACL file of Redis 7 or Valkey, and their passwords.

Invariant: the ACL file holds no password, only what a server needs to check one; a password that lies in the folder is
its owner's alone and is never replaced. Refuses to know what a role may do.

    python -m broker.acl --out secrets [--run NAME] [--rotate ROLE | --forget ROLE]

A password comes from `HEADRACE_<ROLE>_PASSWORD` if that is set, else from `secrets/<role>.password`, which is made up
and written if it is not there. To rotate one is to make another beside it: the one before, in `<role>.previous`, opens
as well until it is forgotten, so that processes can be given the new one in turn.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from broker.cli import guarded
from broker.errors import Refused
from broker.roles import ANY, ROLES, Role, rules
from broker.secret import read_secret, write_secret
from broker.settings import ENV_PREFIX, RUN_NAME

FILE = "users.acl"
SHORTEST = 16  # characters: the file holds plain hashes, from which a short password can be guessed


def document(passwords: Mapping[Role, Sequence[str]], run: str = ANY) -> str:
    """The ACL file of one run, or of all. The user without a name, whom Redis lets do anything, is switched off."""
    lines = ["user default reset off"]
    for role, words in passwords.items():
        digests = [f"#{hashlib.sha256(password.encode()).hexdigest()}" for password in words]
        lines.append(" ".join(["user", role, *digests, *rules(role, run)]))
    return "\n".join([*lines, ""])


def password_file(folder: Path, role: Role) -> Path:
    """Where the password of a role lies."""
    return folder / f"{role}.password"


def previous_file(folder: Path, role: Role) -> Path:
    """Where the password that it had before lies, while that still opens."""
    return folder / f"{role}.previous"


def rotate(folder: Path, role: Role) -> None:
    """Let the password of a role be the previous one; a new one is made by `write`. Raises `Refused`."""
    current, previous = password_file(folder, role), previous_file(folder, role)
    if not current.exists():
        raise Refused(f"there is no {current}", "a password is rotated where it was made: --out names its folder")
    if previous.exists():
        cause = f"{previous} still opens: there would be three passwords"
        raise Refused(cause, f"give every process the newer one, then --forget {role}")
    current.rename(previous)


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
        found = {role: _passwords(folder, role, os.environ if environ is None else environ) for role in ROLES}
        write_secret(folder / FILE, document(found, run))
    except OSError as error:
        raise Refused(f"cannot write to {folder}: {error.strerror}", "choose another folder") from None
    return folder / FILE


def _passwords(folder: Path, role: Role, environ: Mapping[str, str]) -> list[str]:
    previous = previous_file(folder, role)
    return [password_of(folder, role, environ), *([read_secret(previous, str(previous))] if previous.exists() else [])]


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="broker.acl", description="make the server's users, one for each role")
    parser.add_argument("--out", type=Path, default=Path("secrets"), help="folder of the ACL file and the passwords")
    parser.add_argument("--run", default=ANY, help="name of the only run they may touch; default: all runs")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--rotate", choices=ROLES, help="make a new password; the one before opens as well")
    change.add_argument("--forget", choices=ROLES, help="the password before opens no more")
    options = parser.parse_args()
    if options.rotate:
        rotate(options.out, options.rotate)
    if options.forget:
        previous_file(options.out, options.forget).unlink(missing_ok=True)
    path = write(options.out, options.run)
    print(f'{path}: users {", ".join(ROLES)}; for Redis\' option aclfile, or `make broker ARGS="--acl {options.out}"`')


if __name__ == "__main__":
    main()
