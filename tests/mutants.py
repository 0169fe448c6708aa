"""Apply mutants to the code, one at a time, and print those that the tests do not kill.

    python tests/mutants.py                  # every mutant; hours on two cores
    python tests/mutants.py --files linear   # of the files whose path contains a word
    python tests/mutants.py --named          # the mutants that were written by hand alone
    python tests/mutants.py --jobs 2         # two at a time

A mutant changes one operator, comparison or constant of one line. It is applied in a copy of the tree, where the tests
nearest to the file run. A survivor with a reason in `EQUIVALENT` changes no behaviour that a test could see.
"""

from __future__ import annotations

import argparse
import ast
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PER_FILE = 5
"""Mutants drawn from each file."""
SEED = 2020
BASELINE_SECONDS = 900.0
PATIENCE = 4.0
"""A mutant is killed if its tests take so many times as long as without it: a loop without end is noticed."""
SELECTION = "not jax and not strict and not jit and not cupy and not cuda and not torch:func and not torch:backward"
"""The tests of NumPy and PyTorch, and those of no engine: the others run the same code, more slowly."""

TARGETS = {
    "dil/_layers/theorem.py": "test_closed_forms.py test_mutants.py test_gradients.py test_messages_solves.py",
    "dil/_layers/refine.py": "test_units.py test_report.py test_messages_solves.py",
    "dil/_layers/independence.py": "test_batches.py",
    "dil/_base/scale.py": "test_units.py test_forward_solvers.py",
    "dil/_diagnostics/stationarity.py": "test_messages_solves.py test_policy.py test_units.py",
    "dil/_diagnostics/newton_comparison.py": "test_messages_solves.py test_report.py test_units.py",
    "dil/_diagnostics/curvature.py": "test_messages_solves.py test_roots.py",
    "dil/_diagnostics/envelope.py": "test_roots.py test_silent_errors.py test_units.py test_policy.py",
    "dil/_layers/value.py": "test_silent_errors.py test_roots.py test_units.py",
    "dil/_diagnostics/smoothness.py": "test_silent_errors.py test_report.py",
    "dil/_diagnostics/error_bound.py": "test_report.py",
    "dil/_layers/repeated.py": "test_torch_repeated.py",
    "dil/_layers/answer.py": "test_torch_vmap.py",
    "dil/linear/_dense_cost.py": "test_dense_cost.py",
    "dil/linear/_one_reduction_cg.py": "test_one_reduction_cg.py",
    "dil/linear/_racing_cg.py": "test_racing_turns.py test_racing_cg.py test_racing_singular.py test_choice.py",
    "dil/linear/_scaled_cg.py": "test_window.py test_racing_turns.py test_racing_cg.py test_racing_singular.py",
    "dil/linear/_window.py": "test_window.py test_racing_turns.py test_racing_cg.py",
    "dil/linear/_diagonal.py": "test_diagonal.py test_racing_cg.py test_preconditioners.py",
    "dil/linear/_backward_error.py": "test_backward_error.py test_racing_singular.py",
    "backends/dil_backends/torch/user_function.py": "test_torch_vmap.py",
    "backends/dil_backends/torch/dtensors.py": "test_torch_dtensor.py",
    "dil/linear/_cg.py": "test_cg.py test_linear_solvers.py",
    "dil/linear/_part.py": "test_leaving_linear.py",
    "dil/linear/_minres.py": "test_linear_solvers.py",
    "dil/linear/_gmres.py": "test_linear_solvers.py",
    "dil/linear/_bicgstab.py": "test_linear_solvers.py",
    "dil/linear/_direct.py": "test_linear_solvers.py test_messages_solves.py",
    "dil/linear/_equilibration.py": "test_linear_solvers.py test_units.py",
    "dil/linear/_least_norm.py": "test_linear_solvers.py test_messages_solves.py",
    "dil/solvers/_newton.py": "test_forward_solvers.py test_solvers.py test_units.py",
    "dil/solvers/_lbfgs.py": "test_forward_solvers.py test_solvers.py test_units.py",
    "dil/solvers/_quasi_newton_memory.py": "test_forward_solvers.py test_solvers.py test_units.py",
    "dil/solvers/_leaving.py": "test_leaving.py",
    "dil/_frameworks/leaving.py": "test_leaving.py test_leaving_linear.py",
    "dil/solvers/_gradient_descent.py": "test_forward_solvers.py test_solvers.py test_units.py",
    "dil/solvers/_verify.py": "test_forward_solvers.py test_solvers.py test_units.py",
    "dil/solvers/_no_minimum.py": "test_silent_errors.py test_forward_solvers.py",
    "dil/solvers/_anderson.py": "test_forward_solvers.py test_roots.py test_rounding.py",
    "dil/_problem/anderson_memory.py": "test_forward_solvers.py test_roots.py test_rounding.py",
    "dil/_layers/continued.py": "test_continued_points.py",
    "dil/solvers/_rounding.py": "test_rounding.py",
    "dil/ode/_newton.py": "test_ode.py test_ode_failures.py test_units.py",
    "dil/ode/_adaptive.py": "test_ode_adaptive.py test_ode_pairs.py",
    "dil/ode/_simplified_newton.py": "test_ode_adaptive.py test_ode_pairs.py",
    "dil/ode/_found_steps.py": "test_ode_adaptive.py",
    "dil/ode/_mass.py": "test_ode_mass.py",
    "dil/ode/_rate.py": "test_ode_mass.py",
    "dil/ode/_start.py": "test_ode_mass.py",
    "dil/ode/_times.py": "test_ode_times.py",
    "dil/ode/_integration.py": "test_ode_times.py test_ode_adaptive.py",
    "dil/ode/_pairs.py": "test_ode_pairs.py",
    "dil/ode/_row_groups.py": "test_ode_pairs.py",
    "dil/ode/_methods.py": "test_ode_adaptive.py test_ode.py",
    "dil/control/_dare.py": "test_dare.py",
    "dil/control/_ilqr.py": "test_control.py",
    "backends/dil_backends/_tape/rules/elementwise.py": "test_tape_rules.py test_tape.py",
    "backends/dil_backends/_tape/rules/reductions.py": "test_tape_rules.py test_tape.py",
    "backends/dil_backends/_tape/rules/complex.py": "test_tape_complex.py",
    "backends/dil_backends/_tape/rules/fft.py": "test_tape_complex.py",
    "backends/dil_backends/_tape/rules/linalg.py": "test_tape_linalg.py test_tape_rules.py",
    "backends/dil_backends/_tape/rules/norms.py": "test_tape_linalg.py",
    "backends/dil_backends/_tape/rules/eigen.py": "test_tape_linalg.py",
    "backends/dil_backends/_tape/rules/singular.py": "test_tape_linalg.py",
    "backends/dil_backends/_tape/rules/factors.py": "test_tape_linalg.py",
    "backends/dil_backends/_tape/rules/clusters.py": "test_tape_linalg.py",
    "backends/dil_backends/_tape/influence.py": "test_tape_linalg.py",
    "backends/dil_backends/_tape/rules/special.py": "test_tape_special.py",
    "backends/dil_backends/_tape/array_protocol.py": "test_sparse.py",
}
"""File -> the tests nearest to it."""


@dataclass(frozen=True)
class Mutant:
    """A change of one piece of a file."""

    path: str
    old: str
    new: str
    line: int = 0
    column: int = 0
    test: str = ""
    """The one test that kills it; without it the tests nearest to the file run."""

    def __str__(self) -> str:
        old, new = ((ROOT / self.path).read_text().splitlines(), self.applied().splitlines())
        return f"{self.path}: {next(b for a, b in zip(old, new, strict=False) if a != b).strip()}"

    def applied(self) -> str:
        """Return the source with the change."""
        source = (ROOT / self.path).read_text()
        if not self.line:
            assert source.count(self.old) == 1, f"{self.old} is not at one place of {self.path}"
            return source.replace(self.old, self.new)
        lines = source.splitlines(keepends=True)
        line, end = lines[self.line - 1], self.column + len(self.old)
        lines[self.line - 1] = line[: self.column] + self.new + line[end:]
        return "".join(lines)


NAMED = (
    Mutant(
        "dil/solvers/_quasi_newton_memory.py",
        "bool(is_short(longest * gradient, u, start, rtol))",
        "longest * size <= rtol",
    ),
    Mutant("dil/_diagnostics/stationarity.py", "small * scale, axis=-1)", "small, axis=-1)"),
    Mutant("dil/ode/_newton.py", "is_short(step, u, started.u, rtol)", "(norm(step) <= rtol)"),
    Mutant("dil/linear/_least_norm.py", "(dropped <= rounding)", "(dropped <= 2.0)"),
    Mutant("dil/_diagnostics/failure_policy.py", 'if self.on_failure == "nan":', 'if self.on_failure == "none":'),
    Mutant("dil/_layers/refine.py", "open_ & (short | ", "open_ & (moved | "),
    Mutant("dil/_layers/refine.py", "u, Fu = xp.where(better, trial, u), ", "u, Fu = trial, "),
    Mutant("dil/_layers/call.py", "~(max_abs(y) < math.inf)", "(max_abs(y) != max_abs(y))"),
    Mutant("dil/_diagnostics/newton_comparison.py", "return short & small", "return short | small"),
    Mutant("dil/linear/_cg.py", "logical_not(proceed | (positive & (drift * drift < system.accepted_rr)))", "False"),
    Mutant("dil/linear/_cg.py", "bb * rtol**2", "bb * rtol"),
    Mutant(
        "dil/control/_dare.py",
        "total - 2.0 * symmetric(closed.mT @ S @ dB",
        "total + 2.0 * symmetric(closed.mT @ S @ dB",
    ),
    Mutant("dil/control/_dare.py", "radius < 1.0 and np.abs(F).max() <= 1e-3 * size", "radius < 1.0"),
    Mutant("dil/control/_dare.py", " and _least_eigenvalue(Q) >= -1e-12 * size_Q", ""),
    Mutant("dil/solvers/_newton.py", "taken & logical_not(at.rough) & short", "taken & short"),
    Mutant("dil/ode/_adaptive.py", "xp.max(max_abs(slope / scale))", "xp.max(nonzero_max_abs(slope / scale))"),
    Mutant("dil/ode/_simplified_newton.py", "rate * size <= 1 - rate", "size <= 1e3"),
    Mutant("dil/ode/_simplified_newton.py", "self.rate, filled(self.rate, 1.0))", "self.rate, self.rate)"),
    Mutant("dil/ode/_simplified_newton.py", "kept.slow & ~kept.current", "kept.slow & kept.current"),
    Mutant("dil/ode/_integration.py", "(s[i] - at) * self", "0.0 * (s[i] - at) * self"),
    Mutant("dil/ode/_row_groups.py", "pattern_of_entries(columns, rows, n)", "pattern_of_entries(rows, columns, n)"),
    Mutant("dil/ode/_row_groups.py", "** 0.5 * terms", "** 0.5 * terms + 1e9"),
    Mutant("dil/ode/_pairs.py", "m - 0.5 * w - e", "m - 0.5 * w + e"),
    Mutant("dil/ode/_methods.py", "scaled(0.5 * h, (1.0, stages.last)", "scaled(0.25 * h, (1.0, stages.last)"),
    Mutant("dil/ode/_methods.py", "h * h / (6.0 * (h + last))", "h * h / (12.0 * (h + last))"),
    Mutant("dil/ode/_methods.py", "e / (1.0 / 6.0 - 2.0 * e)", "e / (1.0 / 6.0 - e)"),
    Mutant("dil/ode/_methods.py", "E2 = -G2 * E1", "E2 = G2 * E1"),
    Mutant("dil/ode/_methods.py", "B2 * C3**3 + G3 - 0.25", "B2 * C3**3 + G3 - 0.2"),
    Mutant(
        "dil/_layers/repeated.py",
        "if recording():",
        "if False:",
        test="test_torch_repeated.py::test_a_record_sees_every_pass",
    ),
    Mutant(
        "dil/_layers/repeated.py",
        "if all(map(self._is_finite, products)) else None",
        "if True else None",
        test="test_torch_repeated.py::test_a_cotangent_that_is_not_finite_is_told",
    ),
    Mutant(
        "dil/_layers/repeated.py",
        "xp.moveaxis(found, 0, -2)",
        "xp.moveaxis(found, 0, -1)",
        test="test_torch_repeated.py::test_all_arguments_and_those_that_a_pass_asks_for",
    ),
    Mutant("dil/_layers/repeated.py", "pull((-g,)", "pull((g,)", test="test_torch_repeated.py::test_batches"),
    Mutant(
        "dil/_layers/repeated.py",
        "if self._is_finite(g) else None",
        "if True else None",
        test="test_torch_repeated.py::test_a_cotangent_of_a_batch_that_is_not_finite_is_told",
    ),
    Mutant(
        "dil/_layers/repeated.py",
        "many((-self.inverse,)",
        "many((self.inverse,)",
        test="test_torch_repeated.py::test_a_jacobian_row_by_row",
    ),
    Mutant(
        "dil/linear/_one_reduction_cg.py",
        "rw - beta * beta * s.pHp",
        "rw + beta * beta * s.pHp",
        test="test_one_reduction_cg.py::test_status_and_accuracy_are_those_of_cg",
    ),
    Mutant(
        "dil/linear/_one_reduction_cg.py",
        "curvature = select(positive, last.curvature, divided(pHp, pp))",
        "curvature = last.curvature",
        test="test_one_reduction_cg.py::test_a_semidefinite_matrix_is_never_called_indefinite",
    ),
    Mutant(
        "dil/linear/_one_reduction_cg.py",
        "self.rtol ** (2 * TRIAL_SHARE)",
        "self.rtol ** 2",
        test="test_one_reduction_cg.py::test_a_slow_problem_is_given_up_after_its_trial",
    ),
    Mutant(
        "dil/linear/_racing_cg.py",
        "(k % 2) * (k // 2) * BEHIND",
        "(k % 2) * (k // 2) * -BEHIND",
        test="test_racing_turns.py",
    ),
    Mutant(
        "dil/linear/_racing_cg.py",
        "over & claims & (4 * tt < method.checked)",
        "over & False",
        test="test_racing_turns.py",
    ),
    Mutant(
        "dil/linear/_racing_cg.py",
        "orthogonal = orthogonal.along(plain, goes_along)",
        "_ = goes_along",
        test="test_window.py::test_no_residual_is_made_orthogonal_on_a_fine_grid",
    ),
    Mutant(
        "dil/linear/_racing_cg.py",
        "tt=select(over, tt, method.tt),",
        "",
        test="test_racing_turns.py",
    ),
    Mutant(
        "dil/linear/_racing_cg.py",
        "race.turn % 2 == 1\n",
        "race.turn % 2 == 0\n",
        test="test_racing_turns.py",
    ),
    Mutant(
        "dil/linear/_window.py",
        "select(wide, 0.0 * self.rows, self.rows)",
        "self.rows",
        test="test_window.py::test_a_window_forgets_the_problems_that_start_anew",
    ),
    Mutant(
        "dil/linear/_window.py",
        "select(mask, 0.0 * self.sum, self.sum)",
        "self.sum",
        test="test_window.py::test_a_window_forgets_the_problems_that_start_anew",
    ),
    Mutant(
        "dil/linear/_window.py",
        "return r - (V.mT",
        "return r + (V.mT",
        test="test_window.py::test_a_window_takes_away_the_components_along_its_rows",
    ),
    Mutant(
        "dil/linear/_window.py",
        "self.sum + signs[k] * v",
        "self.sum + 0.0 * v",
        test="test_window.py::test_a_few_large_eigenvalues_are_found_once",
    ),
    Mutant(
        "dil/linear/_diagonal.py",
        "select(is_end, 0, count)",
        "count",
        test="test_diagonal.py::test_each_round_comes_nearer_to_the_diagonal",
    ),
    Mutant(
        "dil/linear/_diagonal.py",
        "0.5 * row_norm",
        "0.0 * row_norm",
        test="test_diagonal.py::test_it_is_positive_whatever_the_matrix",
    ),
    Mutant(
        "dil/linear/_diagonal.py",
        "root, product = s.root / xp.sqrt(unit)",
        "root, product = s.root",
        test="test_diagonal.py::test_a_diagonal_is_found_at_once",
    ),
    Mutant(
        "dil/linear/_scaled_cg.py",
        " & bounded & logical_not(is_last)",
        " & bounded",
        test="test_window.py::test_after_the_last_repair_the_iteration_starts_anew",
    ),
    Mutant(
        "dil/linear/_scaled_cg.py",
        "wanted & (component > allowed) & (lost > NOISE * machine_eps)",
        "wanted & (component > allowed)",
        test="test_window.py::test_no_residual_is_made_orthogonal_on_a_fine_grid",
    ),
    Mutant(
        "dil/linear/_scaled_cg.py",
        "fills | (m.lost > NOISE * machine_eps)",
        "fills | (m.lost >= 0)",
        test="test_window.py::test_no_residual_is_made_orthogonal_on_a_fine_grid",
    ),
    Mutant(
        "dil/linear/_scaled_cg.py",
        "(m.repairs < MOST_REPAIRS)",
        "(m.repairs >= 0)",
        test="test_window.py::test_after_the_last_repair_the_iteration_starts_anew",
    ),
    Mutant(
        "dil/linear/_backward_error.py",
        "(residual <= MOST * norm_b)",
        "(residual >= 0)",
        test="test_backward_error.py::test_a_residual_of_a_hundredth_is_no_rounding",
    ),
    Mutant(
        "dil/linear/_backward_error.py",
        "FACTOR * machine_eps",
        "1e3 * machine_eps",
        test="test_backward_error.py::test_a_residual_of_a_hundredth_is_no_rounding",
    ),
    Mutant(
        "backends/dil_backends/_tape/rules/complex.py",
        "c * 1j",
        "c * -1j",
        test="test_tape_complex.py::test_convention",
    ),
    Mutant(
        "backends/dil_backends/_tape/rules/complex.py",
        '"conjugated": lambda xp, c, y, x: xp.conj(c)',
        '"conjugated": lambda xp, c, y, x: c',
        test="test_tape_complex.py::test_rule_of_complex_arrays",
    ),
    Mutant(
        "backends/dil_backends/_tape/rules/fft.py",
        "2 * k < n",
        "2 * k <= n",
        test="test_tape_complex.py::test_fourier_transform",
    ),
    Mutant(
        "backends/dil_backends/_tape/rules/fft.py",
        '"backward": "forward", "forward"',
        '"backward": "backward", "forward"',
        test="test_tape_complex.py::test_fourier_transform",
    ),
    Mutant(
        "backends/dil_backends/_tape/rules/linalg.py",
        "xp.expand_dims(xp.conj(c), axis=axis) * b",
        "xp.expand_dims(c, axis=axis) * b",
        test="test_tape_complex.py::test_rule_of_complex_arrays",
    ),
    Mutant(
        "backends/dil_backends/_tape/rules/rule.py",
        "g = xp.real(g) if",
        "g = xp.imag(g) if",
        test="test_tape_complex.py::test_a_cotangent_fits_its_array",
    ),
    Mutant(
        "backends/dil_backends/_tape/rules/elementwise.py",
        "xp.sqrt(x - 1.0) * xp.sqrt(x + 1.0)",
        "xp.sqrt((x - 1.0) * (x + 1.0))",
        test="test_tape_complex.py::test_rule_of_complex_arrays",
    ),
    Mutant(
        "backends/dil_backends/_tape/primitive.py",
        "xp.conj(rule.formulas[i](xp, c, y, *args, **options))",
        "rule.formulas[i](xp, c, y, *args, **options)",
        test="test_tape_complex.py::test_convention",
    ),
    Mutant(
        "backends/dil_backends/torch/guards.py",
        '"Functionalize" in transforms()',
        "False",
        test="test_torch_transforms.py::test_a_transform_that_cannot_be_had_is_named_with_its_alternative[torch.func.functionalize]",
    ),
    Mutant(
        "backends/dil_backends/torch/guards.py",
        "_TorchDispatchModeKey.FAKE) is not None",
        "_TorchDispatchModeKey.FAKE) is False",
        test="test_torch_transforms.py::test_a_transform_that_cannot_be_had_is_named_with_its_alternative[torch.export]",
    ),
)
"""Mutants by hand: absolute tolerances, a dropped component, a policy without gradients, a check that says yes, a check
that is gone, a wrong sign, a transposed inverse."""

EQUIVALENT: dict[str, str] = {
    "dil/_diagnostics/envelope.py: step = eps(xp, u.dtype) ** 0.5 * scale / "
    "standard_normal(F.problem.backend, u, 1, 0)[0, ...]": "the step is random: one over a normal number is as good",
    "dil/_base/scale.py: return size if start is None else "
    "xp.maximum(size, eps(xp, u.dtype) ** (1 / 3) * xp.abs(u + start))": (
        "the way counts only where |start| is above 1e5 |u|, and there |u + start| is |u - start| to five digits"
    ),
}
"""The changed line, as it is printed -> why no test can see the change."""

SWAPS: dict[type, tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.LtE: ("<=", ">"),
    ast.GtE: (">=", "<"),
    ast.Lt: ("<", ">="),
    ast.Gt: (">", "<="),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}


def mutants_of(path: str) -> list[Mutant]:
    """Return every mutant of a file."""
    source = (ROOT / path).read_text()
    lines = source.splitlines()
    found = []

    def between(left: ast.expr, right: ast.expr, kind: type) -> None:
        old, new = SWAPS[kind]
        if left.end_lineno == right.lineno and left.end_lineno is not None and left.end_col_offset is not None:
            column = lines[left.end_lineno - 1].find(old, left.end_col_offset)
            if 0 <= column < right.col_offset:
                found.append(Mutant(path, old, new, left.end_lineno, column))

    tree = ast.parse(source)
    types = {id(part) for note in _annotations(tree) for part in ast.walk(note)}
    for node in ast.walk(tree):
        if id(node) in types:
            continue
        if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
            between(node.left, node.right, type(node.op))
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            between(node.left, node.comparators[0], type(node.ops[0]))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            found.append(Mutant(path, "~", "", node.lineno, node.col_offset))
    return found


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            note = getattr(node, name, None)
            if note is not None:
                yield note


def drawn() -> Iterator[Mutant]:
    """Draw mutants of every file, always the same ones."""
    for path in TARGETS:
        every = mutants_of(path)
        yield from random.Random(f"{SEED} {path}").sample(every, min(PER_FILE, len(every)))


def survives(mutant: Mutant, copy: Path, seconds: float) -> bool:
    """Run the tests nearest to a mutant in a copy of the tree. Return whether they all pass within the seconds."""
    path = copy / mutant.path
    source = path.read_text()
    path.write_text(mutant.applied())
    try:
        return passes(mutant.path, copy, seconds, mutant.test)
    except subprocess.TimeoutExpired:
        return False  # a loop without end is noticed
    finally:
        path.write_text(source)


def passes(path: str, copy: Path, seconds: float, test: str = "") -> bool:
    """Run one test, or those nearest to a file, in the copy of the tree."""
    tests = [test] if test else TARGETS.get(path, "test_policy.py test_ode_failures.py").split()
    chosen = [] if "[" in test else ["-k", SELECTION]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", *chosen, *(f"tests/{t}" for t in tests)]
    environment = {**os.environ, "CI": "true", "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'backends'}"}
    ended = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=seconds, check=False)
    return ended.returncode == 0


def _copy_of_the_tree(folder: Path) -> Path:
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", "__pycache__", ".hypothesis", "out"))
    return folder


def main() -> int:
    """Print the survivors. Return whether one has no reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default="", help="a word that the path of the file contains")
    parser.add_argument("--named", action="store_true", help="only the mutants that were written by hand")
    parser.add_argument("--jobs", type=int, default=1, help="mutants that run at the same time")
    options = parser.parse_args()
    chosen = [m for m in (*NAMED, *(() if options.named else drawn())) if options.files in m.path]
    left = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as jobs:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(options.jobs):
            copies.put(_copy_of_the_tree(Path(folder) / str(number)))

        def judged(group: tuple[str, str]) -> list[tuple[Mutant, bool]]:
            path, test = group
            copy = copies.get()
            begin = time.monotonic()
            assert passes(path, copy, BASELINE_SECONDS, test), f"the tests of {path} fail without a mutant"
            limit = PATIENCE * (time.monotonic() - begin)
            found = [
                (mutant, survives(mutant, copy, limit)) for mutant in chosen if (mutant.path, mutant.test) == group
            ]
            copies.put(copy)
            return found

        for verdicts in jobs.map(judged, sorted({(m.path, m.test) for m in chosen})):
            for mutant, alive in verdicts:
                reason = EQUIVALENT.get(str(mutant))
                print(f"{'survives' if alive else 'killed'}: {mutant}", flush=True)
                if alive:
                    print(f"    {reason or 'no test notices it'}", flush=True)
                    left.append(reason)
    print(f"{len(chosen) - len(left)} of {len(chosen)} killed, {sum(r is None for r in left)} survive without a reason")
    return int(any(reason is None for reason in left))


if __name__ == "__main__":
    sys.exit(main())
