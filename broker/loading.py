"""The one way a recipe is read: the file, the environment over it, flags over both.

Invariant: what is returned is valid, and what nobody knows is refused in one line. Refuses to know what the sections
mean: those that other rooms own are kept as they were written.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from broker.errors import Refused
from broker.settings import ENV_NAME, RecipeBase

SECTIONS = ("run", "broker", "policy", "task", "sampling", "generator", "learner", "objective", "monitoring")

CHOICE = "·"  # begins the tag of a choice among classes, which is no key
LONGEST_RECIPE = 1 << 18
# A dotted key costs Python's TOML parser time and memory by the square of its length.
DEEP_KEY = re.compile(r"""(?<![\w"'.-])(?:[\w"'-]+[ \t]*\.[ \t]*){16}""")

R = TypeVar("R", bound=BaseModel)


def load(
    kind: type[R],
    path: Path,
    flags: list[str] | None = None,
    environ: dict[str, str] | None = None,
    edit: Callable[[dict[str, Any]], None] | None = None,
) -> R:
    """Read `path`, lay environment (`HEADRACE_LEARNER__LR`) and flags (`--learner.lr 1e-5`) over it, validate.

    `edit` changes what the file says before anything is laid over it. Sections that other rooms own are dropped; keys
    nobody knows are refused. Raises `Refused` with one line.
    """
    return compose(kind, _read(path), str(path), flags, environ, edit)


def compose(
    kind: type[R],
    data: dict[str, Any],
    origin: str,
    flags: list[str] | None = None,
    environ: dict[str, str] | None = None,
    edit: Callable[[dict[str, Any]], None] | None = None,
) -> R:
    """As `load`, from a document that is there already; `origin` says where it is from."""
    overrides = _from_environment(dict(os.environ) if environ is None else environ) + _from_flags(flags or [])
    for section in [*data, *(section for (section, _), _ in overrides)]:
        if section not in SECTIONS:
            raise Refused(f"{origin}: unknown section [{section}]", f"known sections are {', '.join(SECTIONS)}")
        if not isinstance(data.setdefault(section, {}), dict):
            raise Refused(f"{origin}: {section} is not a section", f"write [{section}] on a line and its keys below")
    if edit is not None:
        edit(data)
    for (section, key), value in overrides:
        data[section][key] = _plain(value)
    try:
        made = kind.model_validate({k: v for k, v in data.items() if k in kind.model_fields})
    except ValidationError as error:
        raise Refused(f"{origin}: {_one_line(error)}") from None
    if isinstance(made, RecipeBase):
        made.others.update({k: v for k, v in data.items() if k not in kind.model_fields})
    return made


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_RECIPE + 1).decode()
        if len(text) > LONGEST_RECIPE or DEEP_KEY.search(text):
            raise Refused(
                f"{path} is no recipe", f"one has sections and keys, and less than {LONGEST_RECIPE} characters"
            )
        return tomllib.loads(text)
    except FileNotFoundError:
        raise Refused(f"no recipe at {path}", "name a TOML file, for example recipes/demo.toml") from None
    except (ValueError, RecursionError) as error:  # of ValueError also: no UTF-8, too many digits
        raise Refused(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}") from None


def _from_environment(environ: dict[str, str]) -> list[tuple[tuple[str, str], str]]:
    found = []
    for name, value in sorted(environ.items()):
        if match := ENV_NAME.fullmatch(name):
            found.append(((match[1].lower(), match[2].lower()), value))
    return found


def _from_flags(flags: list[str]) -> list[tuple[tuple[str, str], str]]:
    found: list[tuple[tuple[str, str], str]] = []
    rest = [part for flag in flags for part in (flag.split("=", 1) if flag.startswith("--") else [flag])]
    while rest:
        match = re.fullmatch(r"--([a-z]+)\.([a-z0-9_]+)", rest[0])
        if not match or len(rest) < 2:
            secret = found and found[-1][0][1] == "password"  # then this may be the rest of it
            shown = "after the password" if secret else repr(rest[0])
            raise Refused(f"cannot read the flag {shown}", "write --section.key value, as in --learner.lr 1e-5")
        found.append(((match[1], match[2]), rest[1]))
        rest = rest[2:]
    return found


def _plain(value: str) -> Any:
    """Lists and tables as in JSON; what stands alone is read as its field's type by validation."""
    try:
        return json.loads(value) if value.startswith(("[", "{")) else value
    except (ValueError, RecursionError):
        return value


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith(CHOICE))
    if first["type"] == "extra_forbidden":
        return f"unknown key {where}"
    message = first["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {message}{more}" if where else f"{message}{more}"
