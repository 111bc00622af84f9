"""The small changes of `mutants.py`: one operator, number, name, bound, statement or keyword at a time.

A mutation is named by the node's place in the order of walking and by which of the node's changes it is, so it can be
made anew in a fresh tree. Messages, annotations, decorators and checks are left alone: no result depends on them.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
NAMES = {
    a: b
    for pair in (
        ("min", "max"),
        ("minimum", "maximum"),
        ("argmin", "argmax"),
        ("floor", "ceil"),
        ("any", "all"),
        ("cos", "sin"),
        ("zeros", "ones"),
    )
    for a, b in (pair, pair[::-1])
}
WORDS = {"left": "right", "right": "left"}
LEFT_ALONE = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)
LEFT_ALONE_FIELDS = ("annotation", "returns", "decorator_list", "type_params")
LEFT_ALONE_KEYWORDS = ("strict",)  # of zip: only ever checks
LONGEST_TEXT = 70


@dataclass(frozen=True)
class Mutation:
    """One change of a source.

    Attributes:
        original: The whole source.
        node: Which node of the walk.
        number: Which of its changes.
        line: Its line number.
        text: That line.
        before: The changed part, as it was.
        after: As it is then.
    """

    original: str
    node: int
    number: int
    line: int
    text: str
    before: str
    after: str

    def source(self) -> str:
        """Return the changed source."""
        tree = ast.parse(self.original)
        _changes(list(_walk(tree))[self.node])[self.number].make()
        return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


@dataclass(frozen=True)
class Change:
    """What is put into a field of a node, and the part that shows it."""

    part: Any
    owner: ast.AST
    field: str
    value: Any

    def make(self) -> tuple[str, str]:
        """Make the change; returns the part as it was and as it is now."""
        before = ast.unparse(self.part)
        setattr(self.owner, self.field, self.value)
        if self.field == "test":
            return before, f"not ({before})"
        is_dropped = isinstance(self.part, ast.stmt) and self.part is not self.owner
        return before, "pass" if is_dropped else ast.unparse(ast.fix_missing_locations(self.part))


def mutations(source: str, within: tuple[str, ...] = ()) -> list[Mutation]:
    """Return all mutations of a source, or those inside some of its functions."""
    tree = ast.parse(source)
    lines = source.splitlines()
    spans = [
        range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in within
    ]
    found = []
    seen: Counter[tuple[str, str, str]] = Counter()
    for position, node in enumerate(list(_walk(tree))):
        for number, change in enumerate(_changes(node)):
            line = change.part.lineno
            if within and not any(line in span for span in spans):
                continue
            kept = getattr(change.owner, change.field)
            before, after = change.make()
            setattr(change.owner, change.field, kept)
            shown = lines[line - 1].strip(), _short(before, after), _short(after, before)
            seen[shown] += 1
            again = f" (number {seen[shown]} of the line)" if seen[shown] > 1 else ""
            found.append(Mutation(source, position, number, line, *shown[:2], shown[2] + again))
    return found


def _short(text: str, other: str) -> str:
    """Return a text in one line, from shortly before the place where it differs from another."""
    text, other = " ".join(text.split()), " ".join(other.split())
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), 0)
    begin = max(0, min(same - LONGEST_TEXT // 2, len(text) - LONGEST_TEXT))
    return text[begin : begin + LONGEST_TEXT]


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that may be changed, in the order of the source."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in LEFT_ALONE_FIELDS:
            continue
        for child in value if isinstance(value, list) else [value]:
            is_check = isinstance(child, ast.keyword) and child.arg in LEFT_ALONE_KEYWORDS
            if isinstance(child, ast.AST) and not isinstance(child, LEFT_ALONE) and not is_check:
                yield from _walk(child)


def _changes(node: Any) -> list[Change]:
    """Return the changes of a node."""
    found: list[Change] = []

    def add(part: ast.AST, owner: ast.AST, field: str, value: object) -> None:
        found.append(Change(part, owner, field, value))

    match node:
        case ast.Compare(ops=ops):
            for place, operator in enumerate(ops):
                for other in COMPARISONS[type(operator)]:
                    add(node, node, "ops", [*ops[:place], other(), *ops[place + 1 :]])
        case ast.BinOp(right=ast.Constant(value=None)):
            pass  # a type
        case ast.BinOp(op=operator) if type(operator) in OPERATORS:
            add(node, node, "op", OPERATORS[type(operator)]())
        case ast.AugAssign(op=operator) if type(operator) in OPERATORS:
            add(node, node, "op", OPERATORS[type(operator)]())
        case ast.BoolOp(op=operator):
            add(node, node, "op", ast.And() if isinstance(operator, ast.Or) else ast.Or())
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            add(node, node, "operand", ast.UnaryOp(node.op, operand))  # twice: as without
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            add(test, node, "test", ast.UnaryOp(ast.Not(), test))
        case ast.Constant(value=bool(value)):
            add(node, node, "value", not value)
        case ast.Constant(value=int(value) | float(value)):
            others = (value + 1, value - 1) if isinstance(value, int) else (value * 2 if value else 1.0, value / 3)
            for other_value in others:
                if other_value != value:
                    add(node, node, "value", other_value)
        case ast.Constant(value=str(word)) if word in WORDS:
            add(node, node, "value", WORDS[word])
        case ast.Name(id=name) if name in NAMES:
            add(node, node, "id", NAMES[name])
        case ast.Attribute(attr=name) if name in NAMES:
            add(node, node, "attr", NAMES[name])
        case ast.Slice(lower=lower, upper=upper):
            one = ast.Constant(1)
            add(node, node, "lower", one if lower is None else ast.BinOp(lower, ast.Add(), one))
            add(node, node, "upper", ast.Constant(-1) if upper is None else ast.BinOp(upper, ast.Sub(), one))
        case ast.Call(keywords=keywords):
            for place, keyword in enumerate(keywords):
                if keyword.arg not in (None, *LEFT_ALONE_KEYWORDS):
                    add(node, node, "keywords", [*keywords[:place], *keywords[place + 1 :]])
    for field in ("body", "orelse", "finalbody"):
        block = getattr(node, field, None)
        for place, statement in enumerate(block if isinstance(block, list) else []):
            if _can_go(statement, node):
                add(statement, node, field, [*block[:place], ast.Pass(), *block[place + 1 :]])
    return found


def _can_go(statement: ast.stmt, owner: ast.AST) -> bool:
    """Return whether a program without the statement may still run: no name would be missing."""
    match statement:
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Continue() | ast.Break():
            return True
        case ast.Return():  # an early one
            return isinstance(owner, ast.If)
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            return not (isinstance(owner, ast.FunctionDef) and owner.name == "__init__")
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(value))
    return False
