"""What can be seen of a PromQL expression without Prometheus: its form, its functions and the metrics it names."""

from __future__ import annotations

import re

TOKEN = re.compile(
    r"""\s+|(?P<text>"[^"\\]*")|(?P<duration>\d+(?:ms|[smhdwy]))|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)"""
    r"""|(?P<name>[a-zA-Z_:][\w:]*)|(?P<operator>=~|!~|==|!=|>=|<=|[-+*/%^<>=,])|(?P<bracket>[()\[\]{}])"""
)
AGGREGATIONS = {"sum", "min", "max", "avg", "count"}
FUNCTIONS = {"max_over_time", "min_over_time", "rate", "increase"}
KEYWORDS = {"by", "without", "and", "or", "unless", "on", "ignoring"}
CLOSING = {")": "(", "]": "[", "}": "{"}


def metrics_of(expression: str) -> set[str]:
    """Return the metrics that an expression queries.

    Raises:
        ValueError: It is not well formed, or calls what is not known.
    """
    open_brackets: list[str] = []
    labels: list[bool] = []  # for each open bracket, whether names within it are labels
    found: set[str] = set()
    before = ""
    position = 0
    while position < len(expression):
        match = TOKEN.match(expression, position)
        if match is None:
            raise ValueError(f"{expression!r}: what is {expression[position : position + 12]!r}?")
        position = match.end()
        token = match.group().strip()
        if not token:
            continue
        if match["bracket"] and token in "([{":
            open_brackets.append(token)
            labels.append(token == "{" or before in ("by", "without", "on", "ignoring"))
        elif match["bracket"]:
            if not open_brackets or open_brackets.pop() != CLOSING[token]:
                raise ValueError(f"{expression!r}: {token} closes nothing")
            labels.pop()
        elif match["name"] and not any(labels):
            called = re.match(r"\s*(\(|by\b|without\b)", expression[position:])
            if called and token not in AGGREGATIONS | FUNCTIONS | KEYWORDS:
                raise ValueError(f"{expression!r}: {token} is no function that is known here")
            if token in FUNCTIONS and not re.match(r"\s*\([^()]*\[\d+[smhd]\]\)", expression[position:]):
                raise ValueError(f"{expression!r}: {token} takes a range")
            if token not in AGGREGATIONS | FUNCTIONS | KEYWORDS:
                found.add(token)
        elif match["operator"] and before in ("", "(", "+", "*", "/", ",") and token != "-":
            raise ValueError(f"{expression!r}: {token} has no left side")
        before = token
    if open_brackets:
        raise ValueError(f"{expression!r}: {open_brackets[-1]} is left open")
    if not found or before in (">", "<", ">=", "<=", "==", "+", "-", "/", "*"):
        raise ValueError(f"{expression!r}: ends too early, or queries nothing")
    return found
