"""Fingerprints of code: what a stage or a method runs, whatever its comments say.

DVC sees a dependency as a file that changed or did not. A method's results depend on its own file, its
backbone's and the definitions that these use; they do not depend on a comment, a docstring, or a
function added beside. A fingerprint is the hash of the syntax trees of all definitions reached from an
entry point: editing one method reruns its column, mending a docstring reruns nothing, and no import can
be forgotten in dvc.yaml.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

WHOLE = "*"  # in place of a definition's name: all of its module


@dataclass(frozen=True)
class _Module:
    """A project file and its top-level statements."""

    name: str
    path: Path

    @cached_property
    def statements(self) -> list[ast.stmt]:
        return ast.parse(self.path.read_text(encoding="utf-8"), filename=str(self.path)).body

    @cached_property
    def definitions(self) -> dict[str, list[int]]:
        """Name to the indices of the statements that define it."""
        found: dict[str, list[int]] = {}
        for index, statement in enumerate(self.statements):
            for name in _defined(statement):
                found.setdefault(name, []).append(index)
        return found

    @cached_property
    def only_in_signatures(self) -> set[str]:
        """Names that stand in types of arguments and results, and nowhere that is run."""
        read, run = (
            {
                node.id
                for statement in self.statements
                for node in walk(statement)
                if isinstance(node, ast.Name)
            }
            for walk in (ast.walk, _run)
        )
        return read - run


@dataclass
class _Closure:
    """Statements reached so far, by module and index."""

    root: Path
    modules: dict[str, _Module | None] = field(default_factory=dict)
    reached: set[tuple[str, int]] = field(default_factory=set)
    asked: set[tuple[str, str, str | None]] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    """What is imported from other libraries, and under which name."""

    def module(self, name: str) -> _Module | None:
        """The project's module of that dotted name, or None if it is somebody else's."""
        if name not in self.modules:
            stem = self.root / name.replace(".", "/")
            # Entry points import one another by bare names; what they say of paths changes no result.
            beside = self.root / "stages" / f"{name}.py"
            places = (stem.with_suffix(".py"), stem / "__init__.py", *([beside] if name != "study" else []))
            paths = [path for path in places if path.is_file()]
            self.modules[name] = _Module(name, paths[0]) if paths else None
        return self.modules[name]

    def reach(self, name: str, definition: str, alias: str | None = None) -> None:
        """Add a definition of a module, or the WHOLE module, with all that it uses.

        `alias` is the name that the importing module knows it by.
        """
        if (name, definition, alias) in self.asked:  # modules may import one another
            return
        self.asked.add((name, definition, alias))
        submodule = self.module(f"{name}.{definition}")
        if submodule is not None:
            self.reach(submodule.name, WHOLE)
        module = self.module(name)
        if module is None:
            self.foreign.add(f"{name} {definition} as {alias or definition}")
            return
        # Statements that define nothing (a call at import time) act on whoever imports the module.
        chosen = [i for i, node in enumerate(module.statements) if definition == WHOLE or not _defined(node)]
        for index in {*chosen, *module.definitions.get(definition, [])}:
            self._reach_statement(module, index, definition)

    def _reach_statement(self, module: _Module, index: int, wanted: str) -> None:
        statement = module.statements[index]
        is_import = isinstance(statement, ast.Import | ast.ImportFrom)
        if not is_import:
            if (module.name, index) in self.reached or _is_docstring(statement):
                return
            self.reached.add((module.name, index))
        for node in _run(statement):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.reach(alias.name, WHOLE, alias.asname)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    known = alias.asname or alias.name
                    if is_import and known in module.only_in_signatures:
                        continue
                    if not is_import or wanted in (WHOLE, known):
                        self.reach(node.module, alias.name, alias.asname)
            elif isinstance(node, ast.Name) and node.id in module.definitions:
                for other in module.definitions[node.id]:
                    self._reach_statement(module, other, node.id)


def definitions_used(root: Path, modules: Iterable[str]) -> list[tuple[str, ast.stmt]]:
    """(module, statement) of all code of the project that these modules run, in a fixed order.

    `root` holds the packages; names are dotted, such as "ballast.models.training"; "package.*" takes all
    modules of a package, "module:name" one definition. A name that is no file below `root` is somebody
    else's and is passed over.
    """
    return _statements(_closure(root, modules))


def fingerprint(root: Path, modules: Iterable[str]) -> str:
    """Hash of `definitions_used(root, modules)`, the same on every version of Python.

    It covers what is imported from other libraries by name, not their versions. A name with a slash is a
    file that is no module, such as a template: its text counts.
    """
    names = list(modules)
    closure = _closure(root, names)
    digest = hashlib.sha256("\n".join(sorted(closure.foreign)).encode())
    for path in sorted(name for name in names if "/" in name):
        digest.update((root / path).read_bytes())
    for name, statement in _statements(closure):
        digest.update(f"{name}\n{_canonical(statement)}\n".encode())
    return digest.hexdigest()[:16]


def _statements(closure: _Closure) -> list[tuple[str, ast.stmt]]:
    found = []
    for name, index in sorted(closure.reached):
        module = closure.module(name)
        assert module is not None
        found.append((name, module.statements[index]))
    return found


def _closure(root: Path, modules: Iterable[str]) -> _Closure:
    closure = _Closure(root)
    for name in _expanded(root, modules):
        module, _, definition = name.partition(":")
        if closure.module(module) is not None:
            closure.reach(module, definition or WHOLE)
    return closure


def _expanded(root: Path, modules: Iterable[str]) -> Iterator[str]:
    for name in modules:
        if name.endswith(".*"):
            folder = root / name.removesuffix(".*").replace(".", "/")
            yield from (f"{name[:-2]}.{path.stem}" for path in sorted(folder.glob("*.py")))
        else:
            yield name


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it, but for the types of arguments and results, which nothing reads.

    The types of a class's fields stay: records are checked against them when they are read.
    """
    yield node
    for name, value in ast.iter_fields(node):
        is_signature = isinstance(node, ast.arg) or (
            name == "returns" and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        )
        if is_signature:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _run(child)


def _defined(statement: ast.stmt) -> list[str]:
    """Names that a top-level statement binds."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).partition(".")[0] for alias in statement.names]
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    return []


def _canonical(node: object) -> str:
    """A syntax tree as text: no positions, no docstrings, no fields that are empty.

    `ast.dump` would do but for its output, which changes between versions of Python.
    """
    if isinstance(node, ast.AST):
        parts = []
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                value = [part for part in value if not _is_docstring(part)]
            if value is None or value == [] or name in ("kind", "type_comment"):
                continue
            parts.append(f"{name}={_canonical(value)}")
        return f"{type(node).__name__}({','.join(parts)})"
    if isinstance(node, list):
        return f"[{','.join(_canonical(part) for part in node)}]"
    return repr(node)


def _is_docstring(node: object) -> bool:
    """A bare string as a statement: documentation wherever it stands."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
