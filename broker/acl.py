"""The server's users: one for each role, as an ACL file of Redis 7 or Valkey, and their passwords.

Invariant: the ACL file holds no password, only what a server needs to check one; a password that lies in the folder is
its owner's alone and is never replaced. Refuses to know what a role may do.

    python -m broker.acl --out secrets [--run NAME] [--rotate ROLE | --switch ROLE | --forget ROLE]

A password comes from `HEADRACE_<ROLE>_PASSWORD` if that is set, else from `secrets/<role>.password`, which is made up
and written if it is not there. To rotate one is to make another beside it, `<role>.next`, which opens as well from the
server's next start on; then to switch to it, the one before being `<role>.previous`; and to forget that, once nobody
has it any more. At no moment does a process that starts find a password that the server does not know.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

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


def other_file(folder: Path, role: Role, which: Literal["next", "previous"]) -> Path:
    """Where the other password that opens lies, while one is being rotated."""
    return folder / f"{role}.{which}"


def rotate(folder: Path, role: Role) -> None:
    """Make a new password beside the present one. Raises `Refused`."""
    if not password_file(folder, role).exists():
        cause = f"there is no {password_file(folder, role)}"
        raise Refused(cause, "a password is rotated where it was made: --out names its folder")
    for which, remedy in (("next", "switch"), ("previous", "forget")):
        if (other := other_file(folder, role, which)).exists():  # type: ignore[arg-type]
            raise Refused(f"{other} opens as well: there would be three passwords", f"first --{remedy} {role}")
    write_secret(other_file(folder, role, "next"), secrets.token_urlsafe(32) + "\n")


def switch(folder: Path, role: Role) -> None:
    """Let the new password be the one that processes are given. Raises `Refused`."""
    current, following = password_file(folder, role), other_file(folder, role, "next")
    if not following.exists():
        raise Refused(f"there is no {following}", f"--rotate {role} makes it")
    previous = other_file(folder, role, "previous")
    write_secret(previous, read_secret(current, str(current)) + "\n")
    following.rename(current)


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
    others = [path for which in ("next", "previous") if (path := folder / f"{role}.{which}").exists()]
    return [password_of(folder, role, environ), *(read_secret(path, str(path)) for path in others)]


def _run_of(file: Path) -> str:
    """The only run that the users of an ACL file may touch."""
    names = set(re.findall(r"[~]headrace:([^:\s]+):", file.read_text(encoding="utf-8"))) if file.exists() else set()
    return names.pop() if len(names) == 1 else ANY


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="broker.acl", description="make the server's users, one for each role")
    parser.add_argument("--out", type=Path, default=Path("secrets"), help="folder of the ACL file and the passwords")
    parser.add_argument("--run", help="name of the only run they may touch, * for all; default: as it was, else all")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--rotate", choices=ROLES, help="make a new password that opens as well")
    change.add_argument("--switch", choices=ROLES, help="let the new one be the one that processes are given")
    change.add_argument("--forget", choices=ROLES, help="the one before opens no more")
    options = parser.parse_args()
    options.run = options.run or _run_of(options.out / FILE)
    if options.rotate:
        rotate(options.out, options.rotate)
    if options.switch:
        switch(options.out, options.switch)
    if options.forget:
        other_file(options.out, options.forget, "previous").unlink(missing_ok=True)
    path = write(options.out, options.run)
    print(f'{path}: users {", ".join(ROLES)}; for Redis\' option aclfile, or `make broker ARGS="--acl {options.out}"`')


if __name__ == "__main__":
    main()
