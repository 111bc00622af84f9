"""The source files that a detector needs to predict, copied into a registered version under a private package name.

A registered version must predict where yolofleet is not installed, and predict the same where another yolofleet is
installed. So it carries its own inference code: the modules reached by following imports (never a hand-kept list),
copied into a package whose name holds the digest of its content, with their imports rewritten to that name. Two
versions loaded into one process share the package only if their code is the same.

Imports must be absolute (``from yolofleet.x import y``); a module that is named only in a string is not found.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path

PACKAGE = "yolofleet"
PRIVATE_PREFIX = "yolofleet_inference_"
DIGEST_DIGITS = 12


class InferenceCodeError(Exception):
    """A source file cannot be copied into a version: a mistake in yolofleet, not of its user."""


@dataclass(frozen=True)
class InferenceCode:
    """The code that runs a detector."""

    package: str
    """The private name of the package."""
    files: dict[str, str]
    """The rewritten sources by path below the package's folder."""
    imports: frozenset[str]
    """The third-party packages that the sources import."""

    def write(self, folder: Path) -> Path:
        """Write the package into ``folder`` and return the package's own folder."""
        for name, source in self.files.items():
            path = folder / self.package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
        return folder / self.package

    def module(self, name: str) -> str:
        """Return the private name of a yolofleet module."""
        return f"{self.package}{name.removeprefix(PACKAGE)}"


@lru_cache(maxsize=1)
def collect_inference_code(root: str) -> InferenceCode:
    """Return the code that importing a module runs or may run; it is read once in a process.

    Args:
        root: Full name of a yolofleet module.

    Raises:
        InferenceCodeError: A module imports yolofleet in a form that cannot be rewritten.
    """
    folder, paths = _package_folder(), dict(sorted(_reached_modules(root).items()))
    sources = {name: (folder / path).read_text(encoding="utf-8") for name, path in paths.items()}
    content = "\0".join(f"{name}\0{source}" for name, source in sources.items())
    package = PRIVATE_PREFIX + hashlib.sha256(content.encode()).hexdigest()[:DIGEST_DIGITS]
    files = {paths[name].as_posix(): rewrite_imports(source, package, name) for name, source in sources.items()}
    imports = frozenset(top for source in sources.values() for top in _foreign_imports(ast.parse(source)))
    return InferenceCode(package, files, imports)


def pin_requirements(imports: frozenset[str]) -> tuple[str, ...]:
    """Return ``NAME==VERSION`` for the distributions that provide the imported top-level packages.

    A local version label (``2.13.0+cpu``) is left out: it says how torch was built here, not which torch it is.
    """
    providers = _providers()
    missing = sorted(name for name in imports if name not in providers)
    if missing:
        raise metadata.PackageNotFoundError(", ".join(missing))
    names = {sorted(providers[name])[0] for name in imports}
    return tuple(f"{name}=={metadata.version(name).partition('+')[0]}" for name in sorted(names, key=str.lower))


@lru_cache(maxsize=1)
def _providers() -> Mapping[str, list[str]]:
    """Return the distributions of each importable top-level package; reading them all takes a second."""
    return metadata.packages_distributions()


def rewrite_imports(source: str, package: str, module: str) -> str:
    """Return the source with its yolofleet imports turned to ``package``.

    Raises:
        InferenceCodeError: An import has a form that only works under the name yolofleet.
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and _is_ours(node.module or "", node.level, module):
            lines[node.lineno - 1] = re.sub(
                rf"\bfrom(\s+){PACKAGE}\b", rf"from\g<1>{package}", lines[node.lineno - 1], count=1
            )
        elif isinstance(node, ast.Import) and any(_is_ours(alias.name, 0, module) for alias in node.names):
            raise InferenceCodeError(f"{module}, line {node.lineno}: write `from {PACKAGE}... import ...` here")
    return "".join(lines)


def _is_ours(imported: str, level: int, module: str) -> bool:
    if level:
        raise InferenceCodeError(f"{module}: relative imports are not followed; write from {PACKAGE}... import ...")
    return imported.partition(".")[0] == PACKAGE


def _reached_modules(root: str) -> dict[str, Path]:
    """Return every yolofleet module that importing ``root`` runs or may run, with its file below the package."""
    folder = _package_folder()
    reached: dict[str, Path] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        inner = "/".join(name.split(".")[1:])
        candidates = (Path(inner, "__init__.py"), Path(f"{inner}.py"))
        path = next((path for path in candidates if (folder / path).is_file()), None)
        if name in reached or path is None:
            continue
        reached[name] = path
        if "." in name:
            waiting.append(name.rpartition(".")[0])  # importing a module runs the packages around it
        for node in _runtime_imports(ast.parse((folder / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and _is_ours(node.module or "", node.level, name):
                module = str(node.module)
                waiting += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    if root not in reached:
        raise InferenceCodeError(f"there is no module {root}")
    return reached


def _package_folder() -> Path:
    spec = util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InferenceCodeError(f"the package {PACKAGE} has no source files")
    return Path(spec.origin).parent


def _runtime_imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports below a node, those inside functions too, without those for the type checker alone."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
        return
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children = list(node.orelse)
    for child in children:
        yield from _runtime_imports(child)


def _foreign_imports(tree: ast.AST) -> Iterator[str]:
    for node in _runtime_imports(tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        for name in names:
            top = name.partition(".")[0]
            if top != PACKAGE and top not in sys.stdlib_module_names:
                yield top
