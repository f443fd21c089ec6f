"""The faults that are planted: each is one expression or statement of a file, replaced by another."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.Mod: ast.Add, ast.FloorDiv: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
OTHER_FUNCTION = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "argmin": "argmax", "argmax": "argmin",
    "mean": "sum", "sum": "mean", "var": "std", "std": "var", "any": "all", "all": "any", "zeros": "ones",
    "ones": "zeros", "zeros_like": "ones_like", "ones_like": "zeros_like", "sin": "cos", "cos": "sin",
    "cumprod": "cumsum", "cumsum": "cumprod", "logical_and": "logical_or", "logical_or": "logical_and",
    "normal": "uniform", "uniform": "normal", "floor": "ceil", "ceil": "floor",
}  # fmt: skip
"""Functions and methods that are taken for one another."""
DROPPED = {
    "stop_gradient", "clip", "abs", "absolute", "sqrt", "square", "exp", "expm1", "log", "log1p", "tanh", "negative",
    "fold_in", "reversed", "flip", "sorted", "softplus",
}  # fmt: skip
"""Calls of these give their first argument as it is."""
CHECKS = ("chex.", "typing.")
"""Statements that begin so are left alone: they compute nothing."""


class Mutant(NamedTuple):
    """A file with one fault."""

    line: int
    column: int  # from 1
    mutation: str  # BEFORE -> AFTER
    source: str


def mutants_of(source: str) -> list[Mutant]:
    """All mutants of a file's text, in the order of its lines; those that mean the same to Python left out."""
    tree = ast.parse(source)
    found: dict[str, Mutant] = {}
    original = ast.dump(tree)
    for node, others in _alternatives(tree):
        for other in others:
            text = _replaced(source, node, other)
            try:
                if ast.dump(ast.parse(text)) == original:
                    continue
            except SyntaxError:
                continue
            change = f"{_short(node)} -> {_short(other)}"
            found.setdefault(text, Mutant(node.lineno, node.col_offset + 1, change, text))
    return sorted(found.values(), key=lambda mutant: mutant[:3])


def _alternatives(tree: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, list[ast.expr | ast.stmt]]]:
    """Every node below `tree` that runs, with what may stand in its place."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr | ast.stmt):
            if _is_silent(node):
                continue
            if others := [*_other_expressions(node), *_other_statements(node)]:
                yield node, others
        if isinstance(node, ast.If | ast.While):
            yield node.test, [ast.UnaryOp(ast.Not(), node.test)]
        yield from _alternatives(_without_annotations(node))


def _is_silent(node: ast.AST) -> bool:
    """Whether nothing that is computed depends on `node`: imports, texts, checks of shapes, what an error says."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Raise | ast.Assert):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or ast.unparse(node).startswith(CHECKS)
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _without_annotations(node: ast.AST) -> ast.AST:
    """`node` without types and decorators, whose nodes mean nothing while it runs."""
    bare = copy.copy(node)
    for name in ("annotation", "returns", "decorator_list", "type_params"):
        if hasattr(bare, name):
            setattr(bare, name, [] if isinstance(getattr(bare, name), list) else None)
    return bare


def _other_expressions(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.Compare(ops=[op, *rest]) if type(op) in COMPARISONS:
            yield _with(node, ops=[COMPARISONS[type(op)](), *rest])
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield _with(node, op=OPERATORS[type(op)]())
        case ast.BoolOp(op=op):
            yield _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float() as value):
            yield ast.Constant(2 * value if value else 1.0)
        case ast.IfExp(test=test):
            yield _with(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Call():
            yield from _other_calls(node)


def _other_calls(node: ast.Call) -> Iterator[ast.expr]:
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in OTHER_FUNCTION:
        other = OTHER_FUNCTION[name]
        renamed = _with(function, attr=other) if isinstance(function, ast.Attribute) else ast.Name(other)
        yield _with(node, func=renamed)
    if name in DROPPED and node.args and not isinstance(node.args[0], ast.Starred):
        yield node.args[0]
    if name in ("where", "cond") and len(node.args) >= 3:
        condition, first, second, *rest = node.args
        yield _with(node, args=[condition, second, first, *rest])


def _other_statements(node: ast.AST) -> Iterator[ast.stmt]:
    match node:
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Tuple(elts=[first, second, *rest]) as target]) if all(
            isinstance(name, ast.Name) and "key" in name.id for name in (first, second)
        ):
            yield _with(node, targets=[_with(target, elts=[second, first, *rest])])


def _with(node: ast.AST, **fields: object) -> Any:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def _replaced(source: str, node: ast.expr | ast.stmt, other: ast.expr | ast.stmt) -> str:
    """`source` with `other` where `node` stands."""
    lines = source.splitlines(keepends=True)
    assert node.end_lineno is not None and node.end_col_offset is not None
    before = "".join(lines[: node.lineno - 1]) + _columns(lines[node.lineno - 1], None, node.col_offset)
    after = _columns(lines[node.end_lineno - 1], node.end_col_offset, None) + "".join(
        lines[node.end_lineno :]
    )
    text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(other)))
    if isinstance(node, ast.expr):
        text = f"({text})"
    return before + text + after


def _columns(line: str, start: int | None, end: int | None) -> str:
    """Part of a line by its columns, which `ast` counts in bytes."""
    return line.encode()[start:end].decode()


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
