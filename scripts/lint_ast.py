"""Small checks that no linter has: each rule of the house that a machine can see, with a sentence that says what to do.

| rule | what it refuses | where |
|---|---|---|
| `commit` | `.commit(…)`: whoever opens the transaction commits it, and only the kit opens one | outside `kit` |
| `float` | a float annotation, literal, `float(…)` or `/` at a name of money or points | everywhere |
| `clock` | `datetime.now` and its kin: time comes from a `kit.clock.Clock` | outside `kit/src/kit/{clock,ids}.py` |
| `sleep` | waiting by the clock instead of for the event | tests |

Usage: `python scripts/lint_ast.py [PATH…]`; without a path, all Python files of the repository.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

ROOT = Path(__file__).resolve().parent.parent
SKIPPED_FOLDERS = {".git", ".venv", "gen", "node_modules", "var", "__pycache__"}
MONEY_WORDS = {"amount", "amounts", "price", "prices", "points", "balance", "balances", "minor"}
# Ids carry the machine's time as a hint only, and must not cost a clock object each.
CLOCK_READERS = ("kit/src/kit/clock.py", "kit/src/kit/ids.py")
CLOCK_CALLS = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time", "time.time_ns"}


@dataclass(frozen=True)
class Fault:
    path: PurePath
    line: int
    rule: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.sentence}"


def faults_in(source: str, path: PurePath) -> list[Fault]:
    """Every fault of the Python text `source`; `path`, relative to the repository, decides which rules hold."""
    try:
        tree = ast.parse(source, filename=str(path))
    except SyntaxError as error:
        return [Fault(path, error.lineno or 1, "syntax", f"This is not Python 3.11: {error.msg}.")]
    found = set(_floats_near_money(tree))
    if not path.is_relative_to("kit"):
        found |= {(line, "commit", "Whoever opens the transaction commits it: use kit.db.transaction.") for line in _commits(tree)}
    if path.as_posix() not in CLOCK_READERS:
        found |= {(line, "clock", f"`{name}` cannot be held by a test: take a kit.clock.Clock.") for line, name in _clock_reads(tree)}
    if "tests" in path.parts or path.name == "conftest.py":
        found |= {(line, "sleep", "A test that sleeps is slow or flaky: wait for the event itself.") for line in _sleeps(tree)}
    return [Fault(path, *fault) for fault in sorted(found)]


def _dotted(node: ast.expr) -> str:
    """`a.b.c` as text; empty for anything but names and attributes."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            inner = _dotted(value)
            return f"{inner}.{name}" if inner else name
        case _:
            return ""


def _commits(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "commit":
            yield node.lineno


def _clock_reads(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """References as well as calls: a clock handed on as a function is still the machine's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = ".".join(_dotted(node).split(".")[-2:])
            if name in CLOCK_CALLS:
                yield node.lineno, name
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from ((node.lineno, f"time.{alias.name}") for alias in node.names if f"time.{alias.name}" in CLOCK_CALLS)


def _sleeps(tree: ast.AST) -> Iterator[int]:
    """`sleep(0)` only yields to the event loop and is fine."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _dotted(node.func).split(".")[-1] == "sleep":
            only_yields = bool(node.args) and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            if not only_yields:
                yield node.lineno


def _is_money(name: str) -> bool:
    return not MONEY_WORDS.isdisjoint(re.split(r"[._]+", name.lower()))


def _names_money(node: ast.AST) -> bool:
    """Whether the expression is itself a money name, or adds, negates or picks from one."""
    match node:
        case ast.Name() | ast.Attribute():
            return _is_money(_dotted(node).rpartition(".")[2])
        case ast.UnaryOp(operand=inner) | ast.Subscript(value=inner) | ast.Await(value=inner):
            return _names_money(inner)
        case ast.Call(func=function, args=arguments):
            return _names_money(function) or any(_names_money(argument) for argument in arguments)
        case ast.BinOp(left=left, right=right):
            return _names_money(left) or _names_money(right)
        case _:
            return False


def _makes_float(node: ast.AST | None) -> bool:
    """Whether the expression contains a float literal or a call of `float`."""
    if node is None:
        return False
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, float):
            return True
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id == "float":
            return True
    return False


def _says_float(annotation: ast.AST | None) -> bool:
    return annotation is not None and any(isinstance(node, ast.Name) and node.id == "float" for node in ast.walk(annotation))


def _floats_near_money(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    annotated = "Money and points are integers: annotate int (minor units, points) or Decimal (quantities, unit prices), not float."
    valued = "Money and points are integers: a float loses cents; use int, Decimal or kit.money."
    divided = "`/` makes a float of integers: use `//` or kit.money, which say how they round."
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name, annotation=annotation) if _is_money(name) and _says_float(annotation):
                yield node.lineno, "float", annotated
            case ast.FunctionDef() | ast.AsyncFunctionDef() if _is_money(node.name) and _says_float(node.returns):
                yield node.lineno, "float", annotated
            case ast.AnnAssign(target=target, annotation=annotation, value=value) if _names_money(target):
                if _says_float(annotation):
                    yield node.lineno, "float", annotated
                elif _makes_float(value):
                    yield node.lineno, "float", valued
            case ast.Assign(targets=targets, value=value) if any(map(_names_money, targets)) and _makes_float(value):
                yield node.lineno, "float", valued
            case ast.AugAssign(target=target, value=value, op=operator) if _names_money(target):
                if isinstance(operator, ast.Div):
                    yield node.lineno, "float", divided
                elif _makes_float(value):
                    yield node.lineno, "float", valued
            case ast.keyword(arg=str(name), value=value) if _is_money(name) and _makes_float(value):
                yield value.lineno, "float", valued
            case ast.Call(func=ast.Name(id="float"), args=arguments) if any(map(_names_money, arguments)):
                yield node.lineno, "float", valued
            case ast.BinOp(left=left, op=ast.Div(), right=right) if _names_money(left) or _names_money(right):
                yield node.lineno, "float", divided
            case ast.BinOp(left=left, right=right) if (_names_money(left) and _makes_float(right)) or (
                _names_money(right) and _makes_float(left)
            ):
                yield node.lineno, "float", valued
            case ast.Compare(left=left, comparators=others) if any(map(_names_money, [left, *others])) and any(
                map(_makes_float, [left, *others])
            ):
                yield node.lineno, "float", valued


def python_files(start: Path) -> Iterator[Path]:
    """The file itself, or every Python file below the folder that people write."""
    if start.is_file():
        yield start
        return
    for path in sorted(start.iterdir()):
        if path.is_dir():
            if path.name not in SKIPPED_FOLDERS and not path.is_symlink():
                yield from python_files(path)
        elif path.suffix == ".py":
            yield path


def main(arguments: list[str]) -> int:
    """Print every fault; exit code 1 if there is one."""
    starts = [Path(argument).resolve() for argument in arguments] or [ROOT]
    faults = [
        fault for start in starts for path in python_files(start) for fault in faults_in(path.read_text("utf-8"), path.relative_to(ROOT))
    ]
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
