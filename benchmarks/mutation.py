"""Do the tests notice a small mistake? Changes one operator, comparison or constant of a file at a time.

Every mutant is a changed copy of the file in memory; no file on disk changes. pytest collects the tests beside the file
once, and a fork of that process runs them against every mutant. Tests that need a model are left out. A mutant is
noticed if a test fails, or if the tests take 5 s more than ten times their usual time. A survivor is either equivalent
(the change makes no difference) or it shows that a test is missing.

Usage: python benchmarks/mutation.py [FILE ...] [--num N] [--seed N]
       FILE is a key of `TESTS`, such as core/statistics; without one all of them.
"""

import argparse
import ast
import copy
import importlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TESTS = {
    "core/statistics": ("core/test_statistics.py",),
    "core/monitors": ("core/test_monitors.py", "align/test_hacking_guard.py"),
    "generator/flow": ("generator/test_flow.py", "generator/test_flow_values.py"),
    "reward/objective": ("reward/test_objective.py",),
    "reward/wrappers": ("reward/test_wrappers.py",),
}
"""The tests beside each file."""
MODELS = {"pipeline_folder", "generator", "vlm_folder", "backbone", "data_folder"}
"""Fixtures of tests that need a model."""

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
TURNED: dict[type[ast.AST], type[ast.AST]] = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}
"""A second mutant of the same comparison: its reverse."""
Change = Callable[[ast.AST], None]


@dataclass(frozen=True)
class Mutant:
    """The changed module, and the changed line before and after."""

    tree: ast.Module
    line: int
    before: str
    after: str


def _operators(node: ast.AST) -> Iterator[Change]:
    """Changes of one operator or comparison."""
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS:
        new = SWAPS[type(node.op)]
        yield lambda n: setattr(n, "op", new())
    if isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            for other in (table[type(op)] for table in (SWAPS, TURNED) if type(op) in table):
                yield lambda n, place=place, other=other: n.ops.__setitem__(place, other())  # type: ignore[misc]


def _values(node: ast.AST) -> Iterator[Change]:
    """Changes of one constant or sign."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield lambda n: setattr(n, "value", not n.value)  # type: ignore[attr-defined]
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield lambda n: setattr(n, "value", n.value + 1)  # type: ignore[attr-defined]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        yield _undo


def _undo(node: ast.AST) -> None:
    """Turn `-x` into `+x`, `not x` into `not not x` and `~x` into `~~x`."""
    assert isinstance(node, ast.UnaryOp)
    if isinstance(node.op, ast.USub):
        node.op = ast.UAdd()
    else:
        node.operand = ast.UnaryOp(type(node.op)(), node.operand)


def _without_annotations(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes except type annotations."""
    yield tree
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _without_annotations(child)


def mutants(source: str) -> Iterator[Mutant]:
    """Every changed copy of a module."""
    tree = ast.parse(source)
    for place, node in enumerate(_without_annotations(tree)):
        for change in (*_operators(node), *_values(node)):
            changed = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(_without_annotations(changed)) if i == place)
            before = ast.unparse(target)
            change(target)
            ast.fix_missing_locations(changed)
            yield Mutant(changed, getattr(target, "lineno", 0), before, ast.unparse(target))


def _functions(namespace: dict[str, Any], name: str) -> Iterator[tuple[str, FunctionType]]:
    """The functions of a module and of its classes, with their qualified names."""
    for key, value in namespace.items():
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if isinstance(value, FunctionType) and value.__module__ == name:
            yield f"{value.__qualname__}/{key}", value
        elif isinstance(value, type) and value.__module__ == name:
            yield from _functions(dict(vars(value)), name)


def put_in_place(module: ModuleType, tree: ast.Module) -> None:
    """Change an imported module so that it computes what the tree says.

    Other modules hold its functions and classes. So the functions stay and get new code and new defaults.
    """
    new = ModuleType(module.__name__)
    exec(compile(tree, str(module.__file__), "exec"), new.__dict__)
    changed = dict(_functions(new.__dict__, module.__name__))
    for name, function in _functions(dict(vars(module)), module.__name__):
        other = changed[name]
        function.__code__, function.__defaults__ = other.__code__, other.__defaults__
        function.__kwdefaults__ = other.__kwdefaults__
    for name, value in vars(new).items():
        if not name.startswith("__") and not isinstance(value, FunctionType | ModuleType | type):
            setattr(module, name, value)


class Runner:
    """A plugin of pytest that runs the collected tests once for every mutant of a file."""

    def __init__(self, name: str, num: int, seed: int) -> None:
        self.name, self.path = name, ROOT / "src" / "rewarddance" / f"{name}.py"
        everything = list(mutants(self.path.read_text()))
        self.chosen = random.Random(seed).sample(everything, min(num, len(everything)))
        self.survivors: list[Mutant] = []
        self.failed = self.has_run = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = [i for i in session.items if not MODELS & set(getattr(i, "fixturenames", ()))]
        began = time.monotonic()
        if self._is_noticed(items, ast.parse(self.path.read_text()), 600):
            raise SystemExit(f"{self.name}: the tests fail without a change")
        self.has_run = True
        limit = 10 * (time.monotonic() - began) + 5
        for mutant in sorted(self.chosen, key=lambda m: m.line):
            if not self._is_noticed(items, mutant.tree, limit):
                self.survivors.append(mutant)
                print(f"{self.name}.py:{mutant.line}: {mutant.before}  ->  {mutant.after}", flush=True)
        return True

    def _is_noticed(self, items: list[pytest.Item], tree: ast.Module, limit: float) -> bool:
        """Whether the tests fail with this tree in place of the module's, or take longer than the limit."""
        began, child = time.monotonic(), os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            os._exit(self._run(items, tree))
        while time.monotonic() - began < limit:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status != 0
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return True

    def _run(self, items: list[pytest.Item], tree: ast.Module) -> int:
        """Run the tests up to the first failure. Returns 1 if there is one."""
        try:
            put_in_place(importlib.import_module(f"rewarddance.{self.name.replace('/', '.')}"), tree)
        except Exception:  # the changed module cannot be imported, which every test would notice
            return 1
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return 1
        return 0


def measure(name: str, num: int, seed: int) -> Runner:
    """Try mutants of one file."""
    runner = Runner(name, num, seed)
    files = [str(ROOT / "tests" / t) for t in TESTS[name]]
    plain = ["-p", "no:cacheprovider", "--no-header", "--no-summary", "-qq", "-s", "--rootdir", str(ROOT)]
    status = pytest.main([*plain, *files], plugins=[runner])
    if not runner.has_run:
        raise SystemExit(f"{name}: pytest ended with {status!r} before the tests")
    return runner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="a key of TESTS; all without one")
    parser.add_argument("--num", type=int, default=40, help="mutants of each file")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "helpers")]
    runners = [measure(name, args.num, args.seed) for name in args.files or TESTS]
    print("\n| file | mutants | noticed |\n|---|---|---|")
    for r in runners:
        tried, noticed = len(r.chosen), len(r.chosen) - len(r.survivors)
        print(f"| `{r.name}.py` | {tried} | {noticed} ({noticed / tried:.0%}) |")


if __name__ == "__main__":
    main()
