"""A Dockerfile and its build context as data: enough of both formats to replay what the images get, without an engine.

Invariant: what cannot be replayed is refused, never skipped: an instruction or a form of COPY that is not known here
fails the test that meets it. Refuses to know what a RUN does, but for the lock that it installs.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

WORDS = ("ARG", "COPY", "EXPOSE", "FROM", "LABEL", "RUN", "SHELL", "STOPSIGNAL", "USER", "WORKDIR", "ENV")
FORMS = ("CMD", "ENTRYPOINT", "HEALTHCHECK")
INSTALLATION = re.compile(r"requirements/install\.py(?P<flags>[^;&|]*)")
ENVIRONMENT = ".venv"


@dataclass
class Stage:
    """One FROM and what follows it."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        """The arguments of every such instruction, in order."""
        return [rest for step, rest in self.steps if step == word]


@dataclass
class Dockerfile:
    """The stages by name, and the global arguments with their defaults."""

    arguments: dict[str, str]
    stages: dict[str, Stage]

    @staticmethod
    def parse(text: str) -> Dockerfile:
        """Raises `ValueError` for what is not known here."""
        found = Dockerfile({}, {})
        stage: Stage | None = None
        for word, rest in _instructions(text):
            if word not in (*WORDS, *FORMS):
                raise ValueError(f"an instruction that nobody here knows: {word} {rest}")
            if word == "FROM":
                base, _, name = rest.partition(" AS ")
                stage = found.stages[name] = Stage(name, re.sub(r"\$\{(\w+)\}", lambda m: found.arguments[m[1]], base))
            elif stage is None:
                name, _, default = rest.partition("=")
                found.arguments[name] = default
            else:
                stage.steps.append((word, rest))
        return found

    def chain(self, target: str) -> list[Stage]:
        """The target and every stage it is built on, the first one first."""
        stage = self.stages[target]
        return [*(self.chain(stage.base) if stage.base in self.stages else []), stage]

    def steps(self, target: str, word: str) -> list[str]:
        """The arguments of every such instruction of the image, in order."""
        return [rest for stage in self.chain(target) for rest in stage.all(word)]

    def command(self, target: str, word: str) -> list[str]:
        """The last ENTRYPOINT, CMD or HEALTHCHECK of the image, in the form of a list. Raises `ValueError`."""
        rest = self.steps(target, word)[-1]
        if "[" not in rest:
            raise ValueError(f"{target}: {word} {rest} is run by a shell")
        words: list[str] = json.loads(rest[rest.index("[") :])
        return words

    def environment(self, target: str) -> dict[str, str]:
        """What its processes find, over a PATH of the usual kind."""
        found = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
        for rest in self.steps(target, "ENV"):
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                found[name] = re.sub(r"\$(\w+)", lambda match: found[match[1]], value)
        return found

    def labels(self, target: str) -> dict[str, str]:
        """What the image says of itself."""
        pairs = (pair for rest in self.steps(target, "LABEL") for pair in shlex.split(rest))
        return dict(pair.split("=", 1) for pair in pairs)

    def sources(self, target: str) -> set[str]:
        """The paths of the build context that an image is made of, its packages aside."""
        found = set[str]()
        for source, (*paths, _) in map(_copy, self.steps(target, "COPY")):
            if source is None:
                found |= set(paths)
            elif not _is_environment(paths):
                found |= self.sources(source)
        return found

    def packages(self, target: str) -> str:
        """The stage that an image's environment comes from. Raises `ValueError` where there is not just one."""
        (found,) = {source for source, (*paths, _) in map(_copy, self.steps(target, "COPY")) if _is_environment(paths)}
        if found is None:
            raise ValueError(f"{target}: the environment is one of the build context")
        return found

    def installation(self, target: str) -> list[str]:
        """The flags with which an image's environment was installed: the last ones, for a stage adds to another."""
        runs = self.steps(self.packages(target), "RUN")
        return shlex.split([match["flags"] for rest in runs for match in INSTALLATION.finditer(rest)][-1])

    def lay(self, target: str, context: Context, root: Path) -> None:
        """Copy into `root` what the COPY steps of the image put into its file system, but for its environment."""
        here = PurePosixPath("/")
        for stage in self.chain(target):
            for word, rest in stage.steps:
                if word == "WORKDIR":
                    here = here / rest
                elif word == "COPY":
                    self._copy(rest, context, root, here)

    def _copy(self, rest: str, context: Context, root: Path, here: PurePosixPath) -> None:
        source, (*paths, to) = _copy(rest)
        destination = root / str(here / to).lstrip("/")
        for path in paths:
            if source is None:
                into = destination / path if to.endswith("/") else destination
                context.copy(path, into)
            elif not _is_environment([path]):
                other = root.parent / f".{source}"
                shutil.rmtree(other, ignore_errors=True)
                self.lay(source, context, other)
                shutil.copytree(other / path.lstrip("/"), destination, dirs_exist_ok=True)


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word.upper(), rest.strip()


def _copy(rest: str) -> tuple[str | None, list[str]]:
    """The stage that is copied from, None for the context, and the paths. Raises `ValueError` for other flags."""
    flags = [word for word in rest.split() if word.startswith("--")]
    if any(not flag.startswith("--from=") for flag in flags):
        raise ValueError(f"a COPY that nobody here knows: {rest}")
    return (flags[0].partition("=")[2] if flags else None), [word for word in rest.split() if word not in flags]


def _is_environment(paths: list[str]) -> bool:
    return any(PurePosixPath(path).name == ENVIRONMENT for path in paths)


@dataclass
class Context:
    """The files of a checkout that .dockerignore leaves."""

    root: Path
    patterns: list[str]

    @staticmethod
    def of(root: Path, ignored: str) -> Context:
        """`ignored` is the text of .dockerignore."""
        lines = (line.strip() for line in ignored.splitlines())
        return Context(root, [line for line in lines if line and not line.startswith("#")])

    def keeps(self, path: str) -> bool:
        """Whether a file is sent to the engine: the last pattern counts that names it or a folder above it."""
        one = PurePosixPath(path)
        names = [str(one), *(str(parent) for parent in one.parents if str(parent) != ".")]
        kept = True
        for pattern in self.patterns:
            body = pattern.removeprefix("!").rstrip("/")
            if any(_matches(body, name) for name in names):
                kept = pattern.startswith("!")
        return kept

    def files(self, path: str) -> list[str]:
        """Those at or below a path of the context."""
        start = self.root / path
        found = [start] if start.is_file() else sorted(one for one in start.rglob("*") if one.is_file())
        return [name for name in (one.relative_to(self.root).as_posix() for one in found) if self.keeps(name)]

    def copy(self, path: str, to: Path) -> None:
        """As COPY: a file to a file, or what is in a folder into a folder. Raises `ValueError` where nothing is."""
        names = self.files(path)
        if not names:
            raise ValueError(f"COPY {path}: the build context holds no such thing")
        for name in names:
            target = to if name == path else to / PurePosixPath(name).relative_to(path)
            if name == path and to.is_dir():
                target = to / PurePosixPath(name).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.root / name, target)


def _matches(pattern: str, name: str) -> bool:
    parts = re.split(r"(\*\*/|\*|\?)", pattern)
    known = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return re.fullmatch("".join(known.get(part, re.escape(part)) for part in parts), name) is not None
