"""The program that several blocks of Python come to: the block that defines a function, and what it lacks of others.

Invariant: of a function that is defined in two ways, or rests on something that is, there is no program, so that
nothing is won by offering several. A block that merely uses the function is never run. Refuses to know where blocks
come from.
"""

from __future__ import annotations

import ast
import builtins
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from producer.sandbox.runner import SOLUTION

LONGEST = 20_000  # characters of a program
OWN_SCOPE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class _Block:
    text: str
    tree: ast.Module
    entry: str

    @cached_property
    def bindings(self) -> dict[str, dict[str, ast.stmt]]:
        """For each name at the top its definitions, known by what spaces do not change, each with its statement."""
        out = defaultdict[str, dict[str, ast.stmt]](dict)
        for statement in self.tree.body:
            whole = self.identity(statement)
            for name, node in _bound(statement, self.entry):
                out[name][whole if node is statement else self.identity(node)] = statement
        return dict(out)

    @cached_property
    def lacking(self) -> set[str]:
        """What it needs and does not define."""
        return set[str]().union(*map(_free, self.tree.body)) - self.bindings.keys() - set(dir(builtins))

    def identity(self, node: ast.AST) -> str:
        """Of what is too deep, or has too long a number, for a dump: its text."""
        try:
            return ast.dump(node)
        except (RecursionError, ValueError):
            return (ast.get_source_segment(self.text, node) or self.text).strip()

    def behind(self) -> dict[str, list[str]]:
        """The definitions of the function, and of all that it rests on here."""
        found, todo = dict[str, list[str]](), [self.entry]
        seen = set[ast.stmt]()
        while todo:
            name = todo.pop()
            if name in found or name not in self.bindings:
                continue
            found[name] = list(self.bindings[name])
            statements = set(self.bindings[name].values()) - seen
            seen |= statements
            todo.extend(name for statement in statements for name in _free(statement))
        return found

    def source(self, statement: ast.stmt) -> str:
        """Its lines, decorators included."""
        first = min(node.lineno for node in (statement, *getattr(statement, "decorator_list", ())))
        return "\n".join(self.text.split("\n")[first - 1 : statement.end_lineno])


def program(texts: Sequence[str], entry: str) -> str | None:
    """None where no block defines `entry`, or where they are at odds."""
    blocks = [_Block(text, tree, entry) for text in texts if (tree := _parsed(text)) is not None]
    defining = [block for block in blocks if entry in block.bindings]
    agreed = dict[str, list[str]]()
    for block in defining:
        for name, definitions in block.behind().items():
            if agreed.setdefault(name, definitions) != definitions:
                return None
    if not defining:
        return None
    base = min(defining, key=lambda block: len(block.lacking))
    if (helpers := _helpers(base, blocks)) is None:
        return None
    lines = base.text.split("\n")
    at = max((node.end_lineno or 0 for node in base.tree.body if _from_the_future(node)), default=0)
    whole = "\n".join([*lines[:at], *helpers, *lines[at:]])
    return whole if len(whole) <= LONGEST else None


def _helpers(base: _Block, blocks: Sequence[_Block]) -> list[str] | None:
    """What `base` lacks of the other blocks, in the order in which it stands there; None where they are at odds."""
    found = dict[tuple[int, int], str]()
    seen, todo = set(base.bindings), sorted(base.lacking)
    offers = defaultdict[str, list[tuple[int, _Block]]](list)
    for i, block in enumerate(blocks):
        for name in block.bindings:
            offers[name].append((i, block))
    while todo:
        name = todo.pop()
        if name in seen or name not in offers:
            continue
        seen.add(name)
        i, first = offers[name][0]
        if any(block.bindings[name].keys() != first.bindings[name].keys() for _, block in offers[name]):
            return None
        for statement in first.bindings[name].values():
            if (i, statement.lineno) not in found:
                found[i, statement.lineno] = first.source(statement)
                todo.extend(sorted(_free(statement)))
    return [found[place] for place in sorted(found)]


def _parsed(text: str) -> ast.Module | None:
    if len(text) > LONGEST:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # a model's escapes are its own business
            return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _bound(statement: ast.stmt, entry: str) -> Iterator[tuple[str, ast.AST]]:
    """The names that a statement at the top binds there, inside `if` and `try` too, each with what defines it.

    A class is no function, but for `Solution`. What is imported from nowhere that we know, such as the file in which
    the answer is imagined to stand, is no definition.
    """
    for node in _same_scope(statement):
        match node:
            case ast.ClassDef(name=name):
                if name != entry:
                    yield name, statement
                if name == SOLUTION and any(isinstance(n, ast.FunctionDef) and n.name == entry for n in node.body):
                    yield entry, statement
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name, statement
            case ast.Name(id=name, ctx=ast.Store()):
                yield name, statement
            case ast.Import(names=aliases):
                yield from ((alias.asname or alias.name.split(".")[0], ast.Import([alias])) for alias in aliases)
            case ast.ImportFrom(module=str(module), names=aliases, level=0):
                if module.split(".")[0] in sys.stdlib_module_names:
                    yield from ((a.asname or a.name, ast.ImportFrom(module, [a], 0)) for a in aliases)


def _same_scope(statement: ast.stmt) -> Iterator[ast.AST]:
    todo: list[ast.AST] = [statement]
    while todo:
        node = todo.pop()
        if not isinstance(node, COMPREHENSIONS):
            yield node
            if not isinstance(node, OWN_SCOPE):
                todo.extend(ast.iter_child_nodes(node))


def _free(statement: ast.stmt) -> set[str]:
    """The names that it uses and does not bind itself, at whatever depth."""
    used, bound = set[str](), set[str]()
    shared = set[str]()
    for node in ast.walk(statement):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.alias(name=name, asname=other):
                bound.add(other or name.split(".")[0])
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                bound.add(name)
            case ast.Global(names=names):
                shared.update(names)
    return (used - bound) | shared


def _from_the_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"
