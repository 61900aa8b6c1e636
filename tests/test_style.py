"""The style that no linter holds: docstrings, file names, nested conditional expressions."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import cvt_cli

PACKAGE = Path(cvt_cli.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# A docstring that begins with one of these is a clause, or a part of one.
CLAUSES = {
    *("As", "For", "From", "How", "Of", "Since", "So", "That", "Those", "What", "When", "Where"),
    *("Which", "Who", "Whom", "Whose", "Why", "With"),
}


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text("utf-8")))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_style(path: Path) -> None:
    faults = []
    for node in nodes(path):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            words = (ast.get_docstring(node) or "").split(maxsplit=1)
            if words and words[0].rstrip(",:") in CLAUSES:
                faults.append(f"{getattr(node, 'name', 'the module')}: begins with {words[0]}")
        if isinstance(node, ast.IfExp):
            inner = (node.test, node.body, node.orelse)
            if any(isinstance(each, ast.IfExp) for each in inner):
                faults.append(f"line {node.lineno}: conditional expressions within each other")
    assert not faults


def test_a_name_is_one_file() -> None:
    counts = Counter(path.name for path in MODULES if path.name != "__init__.py")
    assert [name for name, count in counts.items() if count > 1] == []
