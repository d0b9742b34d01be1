"""Lays our packages under `foldin` in the wheel: `service` of a checkout is `foldin.service` there.

A build hook of hatchling. Invariant: the code of the wheel is that of the checkout, line by line, except for
the names of our packages in its imports. An import that cannot be told by its own words is refused.
"""

import ast
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TOP = "foldin"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.py[cod]", "*.o", "*.lock")


class UnclearImportError(ValueError):
    """An import binds a name that the wheel would not have: say `from package import module`."""


def under_top(source: bytes, packages: Collection[str]) -> bytes:
    """Return a module's UTF-8 source with the imports of `packages` taken from `foldin`.

    Raises UnclearImportError for `import package.module` without `as`, and for several such in a line.
    """
    lines = source.splitlines(keepends=True)
    # By place, so that later edits of a line come first: columns before them stay as they are.
    edits: dict[tuple[int, int], tuple[bytes, bytes]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and _first(node.module) in packages:
            edits[node.lineno, node.col_offset] = (b"from ", b"from foldin.")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _first(alias.name) not in packages:
                    continue
                if alias.asname is not None:
                    edits[alias.lineno, alias.col_offset] = (b"", b"foldin.")
                elif len(node.names) == 1 and "." not in alias.name:
                    edits[node.lineno, node.col_offset] = (b"import ", b"from foldin import ")
                else:
                    raise UnclearImportError(f"line {node.lineno}: import {alias.name}")
    for (row, column), (before, after) in sorted(edits.items(), reverse=True):
        line = lines[row - 1]
        if not line[column:].startswith(before):
            raise UnclearImportError(f"line {row}: {line.decode().strip()}")
        lines[row - 1] = line[:column] + after + line[column + len(before) :]
    return b"".join(lines)


def _first(module: str | None) -> str:
    return (module or "").partition(".")[0]


class PackagesUnderTop(BuildHookInterface[Any]):
    """Gives the wheel its files. An editable installation has those of the checkout, by their own names."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write what the wheel has beside what is built, and name it."""
        if version == "editable":
            return
        # By their folders in the checkout: that of the client is not at its top.
        packages = {Path(folder).name: folder for folder in self.config["packages"] if folder != TOP}
        made = Path(self.directory) / "packages"
        shutil.rmtree(made, ignore_errors=True)
        for name in (TOP, *packages):
            copied = made / TOP if name == TOP else made / TOP / name
            shutil.copytree(
                Path(self.root) / packages.get(name, name), copied, ignore=LEFT_OUT, dirs_exist_ok=True
            )
        for path in sorted(made.rglob("*.py")):
            try:
                path.write_bytes(under_top(path.read_bytes(), packages))
            except UnclearImportError as exc:
                raise UnclearImportError(f"{path.relative_to(made)}: {exc}") from None
        build_data["force_include"][str(made / TOP)] = TOP

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was written: only the wheel stays."""
        shutil.rmtree(Path(self.directory) / "packages", ignore_errors=True)
