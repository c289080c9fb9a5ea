"""Mutants of Python functions: comparisons, boolean and arithmetic operators, constants, statements, arguments, order.

Constants of modules and defaults of arguments are tunables, and stay. Nor are annotations and messages changed.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from importlib import import_module
from types import FunctionType, ModuleType

from tests.mutation.mutants import Mutant

MODULES = ("tasks", "results", "cursors")
"""The modules of `flq.link` whose functions are changed."""

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
UNSEEN = frozenset({"prepare", "binary", "strict"})
"""Arguments that choose how a statement travels, not what it says, or that check what holds anyway."""

FUNCTIONS = {"min": "max", "max": "min", "sorted": "list", "any": "all", "all": "any"}

Node = ast.AST
Change = Callable[[Node], Node]
"""Makes of a node, which it may alter, the one that stands in its place."""


def mutants() -> Iterator[Mutant]:
    """Every mutant of the functions, each with one change."""
    for name in MODULES:
        module = import_module(f"flq.link.{name}")
        tree = ast.parse(_source(module))
        for function, qualname in _functions(tree):
            yield from _of(module, tree, function, qualname)


def _of(module: ModuleType, tree: ast.Module, function: ast.FunctionDef, qualname: str) -> Iterator[Mutant]:
    place = f"{module.__name__.rpartition('.')[2]}.py:{qualname}"
    for statement, node in _nodes(function):
        for change in _changes(node):
            was = ast.unparse(_said(statement, node))
            changed, now = _changed(tree, statement, node, change)
            if now != was:
                install = partial(_install, module, changed, qualname)
                yield Mutant(place, was, now, install=install, lines=_lines(statement))


def _source(module: ModuleType) -> str:
    with open(module.__file__ or "", encoding="utf-8") as file:  # noqa: PTH123 - a name, not a path
        return file.read()


def _functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, str]]:
    """The functions and the methods of classes; functions inside of them are parts of them."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node, node.name
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield inner, f"{node.name}.{inner.name}"


def _nodes(function: ast.FunctionDef) -> Iterator[tuple[ast.stmt, Node]]:
    """What a function is made of, each part with the statement that it belongs to."""
    waiting: list[tuple[ast.stmt, Node]] = [(s, s) for s in reversed(function.body)]
    while waiting:
        statement, node = waiting.pop()
        if isinstance(node, (ast.JoinedStr, ast.FunctionDef)) or (isinstance(node, ast.keyword) and node.arg in UNSEEN):
            continue
        yield statement, node
        skipped = {id(getattr(node, name, None)) for name in ("annotation", "returns")}
        waiting += [
            (child if isinstance(child, ast.stmt) else statement, child)
            for child in reversed(list(ast.iter_child_nodes(node)))
            if id(child) not in skipped
        ]


def _lines(statement: ast.stmt) -> frozenset[int]:
    """The lines of a statement; of one that holds others those of its head."""
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if isinstance(body, list) and body else statement.end_lineno or statement.lineno
    return frozenset(range(statement.lineno, max(last, statement.lineno) + 1))


def _said(statement: ast.stmt, node: Node) -> Node:
    """What a label shows: the statement, or of one that holds others the part that is changed."""
    return node if hasattr(statement, "body") and node is not statement else statement


def _changed(tree: ast.Module, statement: ast.stmt, node: Node, change: Change) -> tuple[ast.Module, str]:
    """The module with one node changed, and how the changed place reads."""
    memo: dict[int, object] = {}
    copy = deepcopy(tree, memo)
    twin, twin_statement = memo[id(node)], memo[id(statement)]
    assert isinstance(twin, ast.AST)
    assert isinstance(twin_statement, ast.stmt)
    made = change(twin)
    if made is not twin:
        _put(copy, twin, made)
    said = made if node is statement else _said(twin_statement, made)
    return ast.fix_missing_locations(copy), ast.unparse(said)


def _put(tree: ast.Module, old: Node, new: Node) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list) and any(item is old for item in value):
                value[:] = [new if item is old else item for item in value]


def _install(module: ModuleType, tree: ast.Module, qualname: str) -> None:
    """Give the function the changed code; whoever has imported it has the changed one."""
    names: dict[str, object] = {"__name__": module.__name__, "__file__": module.__file__}
    exec(compile(tree, module.__file__ or "", "exec"), names)  # noqa: S102 - our own code, with one change
    _find(vars(module), qualname).__code__ = _find(names, qualname).__code__


def _find(space: Mapping[str, object], qualname: str) -> FunctionType:
    first, *rest = qualname.split(".")
    found = space[first]
    for name in rest:
        found = getattr(found, name)
    assert isinstance(found, FunctionType)
    return found


def _changes(node: Node) -> Iterator[Change]:
    match node:
        case ast.Compare(ops=[operator]):
            for other in COMPARISONS[type(operator)]:
                yield partial(_set, "ops", [other()])
        case ast.BoolOp():
            yield partial(_set, "op", ast.And() if isinstance(node.op, ast.Or) else ast.Or())
        case ast.UnaryOp(op=ast.Not()):
            yield _operand
        case ast.BinOp() | ast.AugAssign() if type(node.op) in OPERATORS:
            yield partial(_set, "op", OPERATORS[type(node.op)]())
        case ast.Constant():
            yield from _constants(node)
        case ast.Call():
            yield from _calls(node)
    yield from _conditions(node)
    yield from _removals(node)


def _constants(node: ast.Constant) -> Iterator[Change]:
    if isinstance(node.value, bool):
        yield partial(_set, "value", not node.value)
    elif isinstance(node.value, (int, float)):
        yield partial(_set, "value", node.value + 1)
    elif isinstance(node.value, bytes):
        yield partial(_set, "value", node.value + b"x")


def _calls(node: ast.Call) -> Iterator[Change]:
    if isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
        yield partial(_renamed, FUNCTIONS[node.func.id])
    elif isinstance(node.func, ast.Attribute) and node.func.attr == "execute":
        return  # a statement and its values cannot be taken for each other
    elif len(node.args) > 1 and not any(isinstance(argument, ast.Starred) for argument in node.args):
        yield partial(_set, "args", [node.args[1], node.args[0], *node.args[2:]])


def _conditions(node: Node) -> Iterator[Change]:
    """What decides by itself, turned round; comparisons and negations have changes of their own."""
    if isinstance(node, (ast.If, ast.While, ast.IfExp)) and not _is_decided(node.test):
        yield partial(_set, "test", ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.comprehension):
        for place, test in enumerate(node.ifs):
            yield partial(_set, "ifs", [*node.ifs[:place], *node.ifs[place + 1 :]])
            if not _is_decided(test):
                yield partial(
                    _set, "ifs", [*node.ifs[:place], ast.UnaryOp(ast.Not(), test), *node.ifs[place + 1 :]]
                )  # fmt: skip


def _is_decided(test: ast.expr) -> bool:
    return isinstance(test, (ast.Compare, ast.BoolOp)) or (
        isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    )


def _removals(node: Node) -> Iterator[Change]:
    """Statements that are made for their effect, left out."""
    match node:
        case ast.Expr(value=ast.Constant()):
            return  # a docstring
        case ast.Assign(targets=[ast.Name()]):
            return  # without it there is only a NameError
        case ast.Expr() | ast.Assign() | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Delete():
            yield _nothing


def _set(name: str, value: object, node: Node) -> Node:
    setattr(node, name, value)
    return node


def _operand(node: Node) -> Node:
    assert isinstance(node, ast.UnaryOp)
    return node.operand


def _renamed(name: str, node: Node) -> Node:
    assert isinstance(node, ast.Call)
    node.func = ast.Name(name, ast.Load())
    if name == "list":
        node.keywords = []
    return node


def _nothing(_: Node) -> Node:
    return ast.Pass()
