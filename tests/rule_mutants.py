"""Break the derivative rules of the tape, one place at a time, and print the mutants that no test kills.

    python tests/rule_mutants.py                   # every mutant of every file; ten minutes
    python tests/rule_mutants.py --files special   # of the files whose path contains a word
    python tests/rule_mutants.py --list            # their names alone

A mutant turns a sign, swaps the operands of a difference, drops a constant factor, a transpose, a conjugate or a real
part. It needs no copy of the tree: the tests are collected once, and each mutant gets a fork of the process, in which
the code of the function is replaced and the tests that call the function run, fastest first. Code that runs on import,
such as the entries of a table, is replaced on import, in a fork from before.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

import pytest

from rule_mutants_equivalent import EQUIVALENT

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "backends/dil_backends/_tape"
FILES = (*sorted((PACKAGE / "rules").rglob("*.py")), PACKAGE / "primitive.py")
TESTS = ["tests/test_tape*.py", "tests/test_sparse.py"]
NEAREST = {"special": "special", "numpy_own": "numpy", "fft": "complex"}
"""A word of the path of a file -> that of the tests that run for its code of import time."""
SELECTION = "not strict and not jax and not torch and not cupy"
SECONDS = 120
"""A mutant is killed if its tests take longer: a loop without end is noticed."""
PASSED, FAILED = 0, 1


@dataclass(frozen=True)
class Mutant:
    """One replaced expression of a file."""

    path: Path
    scope: str
    """The function, or the key of the table."""
    change: str
    on_import: bool
    code: CodeType
    """Of the whole file."""

    def __str__(self) -> str:
        return f"{self.path.relative_to(PACKAGE)}: {self.scope}: {self.change}"


class Place(NamedTuple):
    """An expression of a file."""

    node: ast.expr
    put: Callable[[ast.expr], None]
    """Puts another expression in its place."""
    scope: str
    inside: bool
    """Whether it is in a function, and does not run on import."""
    returned: bool
    size: bool
    """Whether only its absolute value counts."""


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield every mutant of a file."""
    tree = ast.parse(path.read_text())
    met: Counter[tuple[str, str]] = Counter()
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node, put, scope, inside, returned, size in list(expressions(tree, "", False)):
        news = [*replacements(node, size)]
        unsigned = isinstance(node, UNSIGNED) or (isinstance(node, ast.Name) and node.id in functions)
        unsigned |= isinstance(node, ast.Call) and ast.unparse(node.func) in ("xp.zeros", "xp.zeros_like")
        if returned and not unsigned:
            news.append(ast.UnaryOp(ast.USub(), node))
        for new in news:
            put(ast.fix_missing_locations(ast.copy_location(new, node)))
            code = compile(tree, str(path), "exec", dont_inherit=True)
            put(node)
            name = (scope, f"{words(node)} -> {words(new)}")
            met[name] += 1
            again = f" ({met[name]})" if met[name] > 1 else ""
            yield Mutant(path, scope, name[1] + again, not inside, code)


SKIPPED = ("annotation", "args", "returns", "decorator_list")
UNSIGNED = (ast.UnaryOp, ast.Tuple, ast.Constant, ast.JoinedStr, ast.Lambda)


def expressions(node: ast.AST, scope: str, inside: bool, signed: bool = True) -> Iterator[Place]:
    """Yield the expressions within a node, without annotations and default values."""
    if isinstance(node, ast.FunctionDef):
        signed = not (isinstance(node.returns, ast.Name) and node.returns.id in ("bool", "str"))
        scope, inside = node.name, True
    inside = inside or isinstance(node, ast.Lambda)
    for field, value in ast.iter_fields(node):
        if field in SKIPPED and not isinstance(node, ast.Call):
            continue
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or (isinstance(child, ast.keyword) and child.arg in ("dtype", "device")):
                continue
            within = scope
            if isinstance(node, ast.Dict) and field == "values" and isinstance(key := node.keys[i], ast.Constant):
                within = str(key.value)
            if isinstance(child, ast.expr):
                put = partial(value.__setitem__, i) if isinstance(value, list) else partial(setattr, node, field)
                result = isinstance(node, ast.Return) or (isinstance(node, ast.Lambda) and field == "body")
                size = isinstance(node, ast.Call) and field == "args" and ast.unparse(node.func) in ("abs", "xp.abs")
                yield Place(child, put, within, inside, result and signed, size)
            yield from expressions(child, within, inside, signed)


def replacements(node: ast.expr, size: bool) -> Iterator[ast.expr]:
    """Yield what a mutant has in the place of a node. `size`: only its absolute value counts."""
    match node:
        case ast.BinOp(left, ast.Add(), right):
            yield ast.BinOp(left, ast.Sub(), right)
        case ast.BinOp(left, ast.Sub(), right):
            yield ast.BinOp(left, ast.Add(), right)
            if not size:
                yield ast.BinOp(right, ast.Sub(), left)
        case ast.BinOp(left, ast.Mult() | ast.Div() as op, right):
            if is_factor(left):
                yield ast.BinOp(ast.Constant(1.0), op, right)
            if is_factor(right):
                yield left
        case ast.UnaryOp(ast.USub(), operand) if not (
            isinstance(operand, ast.Constant) and isinstance(operand.value, int)  # an axis or an index
        ):
            yield operand
        case ast.Attribute(value, "mT" | "T"):
            yield value
        case ast.Call():
            yield from calls(node)


def words(node: ast.expr) -> str:
    """Return the beginning of an expression."""
    text = ast.unparse(node)
    return text if len(text) <= 34 else f"{text[:31]}..."


def is_factor(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and node.value not in (0, 1, -1)


def calls(node: ast.Call) -> Iterator[ast.expr]:
    """Yield what a mutant has in the place of a call of a transpose, a conjugate or a real part."""
    match node.func:
        case ast.Name(name):  # adjoint(xp, x)
            args = node.args[1:] if len(node.args) > 1 else node.args
        case ast.Attribute(_, name) if node.args:  # xp.conj(x)
            args = node.args
        case ast.Attribute(value, name):  # x.conj()
            args = [value]
        case _:
            return
    if name in DROPPED and args:
        yield args[0]
    elif name == "adjoint" and len(node.args) == 2:
        for left in ("conj", "matrix_transpose"):
            yield ast.Call(ast.Attribute(node.args[0], left, ast.Load()), args, [])


DROPPED = {
    *("conj", "conjugate", "real", "matrix_transpose", "swapaxes", "permute_dims", "transpose", "moveaxis"),
    *("hermitian_part", "skew_part"),
}


def codes(code: CodeType) -> dict[tuple[object, ...], CodeType]:
    """Return the code objects of functions within one, by name, line, and number among those of one name and line."""
    found: dict[tuple[object, ...], CodeType] = {}
    within = [code]
    for parent in within:  # it grows
        for constant in parent.co_consts:
            if isinstance(constant, CodeType):
                within.append(constant)
                name = (constant.co_qualname, constant.co_firstlineno)
                found[*name, sum(key[:2] == name for key in found)] = constant
    return found


def place_of(code: CodeType) -> tuple[object, ...]:
    """Return what tells a code object from all others of its file."""
    return (code.co_filename, code.co_qualname, tuple(code.co_positions()))


class Replacement(NamedTuple):
    old: tuple[object, ...]
    new: CodeType


def changed(mutant: Mutant, plain: CodeType) -> list[Replacement]:
    """Return the code objects that a mutant replaces, but those that ran on import."""
    new = codes(mutant.code)
    olds = codes(plain).items()
    return [Replacement(place_of(old), new[key]) for key, old in olds if key in new and old != new[key]]


class Seconds(NamedTuple):
    item: Any
    seconds: float


class Runs:
    """A plugin of pytest. It runs the tests once, and those of each mutant in a fork."""

    def __init__(self, mutants: list[Mutant]) -> None:
        self.mutants = mutants
        self.survivors: list[Mutant] = []
        self.untested: list[Mutant] = []
        """Mutants of functions that no test calls: they run on import, or never. A test may also import a file anew,
        and call its functions there."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        tests = self.tests_of_functions(session.items)
        functions: dict[tuple[object, ...], list[FunctionType]] = {}
        gc.unfreeze()  # `get_objects` leaves out what conftest.py has frozen
        for found in gc.get_objects():
            if type(found) is FunctionType and found.__code__.co_filename.startswith(str(PACKAGE)):
                functions.setdefault(place_of(found.__code__), []).append(found)
        plain = {path: compile(path.read_text(), str(path), "exec", dont_inherit=True) for path in FILES}
        for mutant in self.mutants:
            replaced = changed(mutant, plain[mutant.path])
            assert any(old in functions for old, _ in replaced), f"no function has the code of {mutant}"
            chosen = {test.item: test.seconds for old, _ in replaced for test in tests.get(old, [])}
            items = sorted(chosen, key=chosen.__getitem__)

            def run(replaced: list[Replacement] = replaced, items: list[Any] = items) -> int:
                for old, new in replaced:
                    for function in functions.get(old, []):
                        function.__code__ = new
                return next((FAILED for item in items if failed(item, None)), PASSED)

            status = forked(run) if items else PASSED
            if items and (status != PASSED or str(mutant) in EQUIVALENT):
                report(mutant, status, self.survivors)
            else:
                self.untested.append(mutant)
        return True

    def tests_of_functions(self, items: list[pytest.Item]) -> dict[tuple[object, ...], list[Seconds]]:
        """Return the tests that call each function, from a run without a mutant."""
        targets = {str(path) for path in FILES}
        found: dict[tuple[object, ...], list[Seconds]] = {}
        for item, following in zip(items, [*items[1:], None], strict=True):
            called: dict[int, CodeType] = {}

            def look(frame: FrameType, event: str, argument: object, called: dict[int, CodeType] = called) -> None:
                if event == "call" and frame.f_code.co_filename in targets:
                    called[id(frame.f_code)] = frame.f_code

            begin = time.monotonic()
            sys.settrace(look)
            wrong = failed(item, following)
            sys.settrace(None)
            assert not wrong, f"{item.nodeid} fails without a mutant"
            for code in called.values():
                found.setdefault(place_of(code), []).append(Seconds(item, time.monotonic() - begin))
        return found


def failed(item: pytest.Item, following: pytest.Item | None) -> bool:
    from _pytest.runner import runtestprotocol
    from _pytest.warnings import catch_warnings_for_item

    with catch_warnings_for_item(item.config, item.ihook, when="runtest", item=item):  # the marks of the test
        return any(phase.failed for phase in runtestprotocol(item, log=False, nextitem=following))


def forked(run: Callable[[], int]) -> int:
    """Return what a function returns in a fork. One that runs too long has failed."""
    sys.stdout.flush()
    gc.freeze()  # a collection in the fork would copy the memory of the parent
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        try:
            status = run()
        except BaseException:  # what the mutant raises beside a test has failed too
            status = FAILED
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def report(mutant: Mutant, status: int, survivors: list[Mutant]) -> None:
    """Print a mutant that no test kills."""
    if status == -signal.SIGALRM:
        print(f"no end in {SECONDS} s: {mutant}", flush=True)
    if status == PASSED:
        survivors.append(mutant)
        print(f"survives: {mutant}\n    {EQUIVALENT.get(str(mutant), 'no test notices it')}", flush=True)


def killed_on_import(mutant: Mutant) -> int:
    """Run the tests nearest to a file whose module is made of the code of a mutant. No module of it is loaded yet."""

    class Loader(importlib.machinery.SourceFileLoader):
        def get_code(self, fullname: str) -> CodeType:
            return mutant.code

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
            spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
            if spec is None or spec.origin != str(mutant.path):
                return None
            return importlib.util.spec_from_file_location(
                fullname, mutant.path, loader=Loader(fullname, str(mutant.path)),
                submodule_search_locations=spec.submodule_search_locations,
            )  # fmt: skip

    sys.meta_path.insert(0, Finder())
    near = [file for word, file in NEAREST.items() if word in str(mutant.path)] or ["rules", "linalg", "complex"]
    code = pytest.main([*OPTIONS, "-x", *(f"tests/test_tape_{name}.py" for name in near)])
    return PASSED if code == pytest.ExitCode.OK else FAILED


class WithoutThreads(importlib.abc.MetaPathFinder):
    """Hides JAX and PyTorch: they start threads, which a fork loses and waits for without end."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname in ("jax", "torch"):
            raise ModuleNotFoundError(fullname, name=fullname)


OPTIONS = ["-q", "--tb=no", "-n", "0", "-p", "no:cacheprovider", "-k", SELECTION]


def main() -> int:
    """Print the survivors. Return whether one has no reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default="", help="a word that the path of the file contains")
    parser.add_argument("--list", action="store_true", help="print the names of the mutants")
    parser.add_argument("--on-import", metavar="NAME", help="run one mutant, in the code that runs on import")
    options = parser.parse_args()
    mutants = [m for path in FILES if options.files in str(path.relative_to(PACKAGE)) for m in mutants_of(path)]
    if options.list:
        print(*mutants, sep="\n")
        return 0
    os.chdir(ROOT)
    os.environ["CI"] = "true"
    sys.path[:0] = [str(ROOT), str(ROOT / "backends")]
    sys.meta_path.insert(0, WithoutThreads())
    for name in ("scipy.special", "scipy.sparse", "array_api_strict"):
        importlib.import_module(name)  # the forks need not load them again
    if options.on_import:
        return killed_on_import(next(m for m in mutants if str(m) == options.on_import))
    survivors: list[Mutant] = []
    for mutant in mutants:
        if mutant.on_import:
            report(mutant, forked(partial(killed_on_import, mutant)), survivors)
    runs = Runs([m for m in mutants if not m.on_import])
    files = [str(path.relative_to(ROOT)) for pattern in TESTS for path in sorted(ROOT.glob(pattern))]
    code = pytest.main([*OPTIONS, *files], plugins=[runs])
    assert code == pytest.ExitCode.OK, code
    survivors += runs.survivors
    for mutant in runs.untested:
        again = [sys.executable, __file__, "--on-import", str(mutant)]
        report(mutant, subprocess.run(again, capture_output=True, check=False).returncode, survivors)
    unexplained = [m for m in survivors if str(m) not in EQUIVALENT]
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} killed, {len(unexplained)} survive without a reason")
    return int(bool(unexplained))


if __name__ == "__main__":
    sys.exit(main())
