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


# Their tensors come in turn, as in the operations that they call.
IN_TURN = {PACKAGE / f"model/{name}.py" for name in ("cuda", "fused", "kernels")}
# `cvt` and `python -m cvt_cli` both begin there.
ENTRIES = {"main"}


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


def definitions() -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """The functions and classes of all modules, without those within others."""
    for path in MODULES:
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node


def takes_any_number(node: ast.FunctionDef | ast.ClassDef) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.args.vararg is not None
    return any(
        isinstance(each, ast.FunctionDef) and each.name == "__init__" and each.args.vararg
        for each in node.body
    )


def test_a_public_name_is_one_thing() -> None:
    counts = Counter(
        node.name for node in definitions() if node.name[0] != "_" and node.name not in ENTRIES
    )
    assert [name for name, count in counts.items() if count > 1] == []


COUNTED = {node.name for node in definitions() if not takes_any_number(node)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_more_than_three_values_have_names(path: Path) -> None:
    """Rows of a table, constants of the module, aside."""
    faults = []
    tree = ast.parse(path.read_text("utf-8"))
    for statement in tree.body if path not in IN_TURN else ():
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and len(node.args) > 3:
                called = node.func
                name = called.attr if isinstance(called, ast.Attribute) else ast.unparse(called)
                of_struct = isinstance(called, ast.Attribute) and name == "pack"
                if (name in COUNTED and not of_struct) or name == "cls":
                    faults.append(f"line {node.lineno}: {name}")
    assert not faults
