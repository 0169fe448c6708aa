"""A sentence that says what `Auto` did with the problems of a batch, and why."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from dil._base.status import Status, name_of

MOST_ATTEMPTS = 4
"""The most solvers that one problem goes through: the memory of `Recycle`, and three of `Auto`."""


class Tried(IntEnum):
    """A solver of an attempt."""

    NONE = 0
    DIRECT = 1
    CG = 2
    BICGSTAB = 3
    LEAST_NORM = 4
    MINRES = 5
    IDR = 6
    MEMORY = 7
    """`Recycle`."""
    NEW_INVERSE = 8
    """`Recycle`, after it has built the inverse of this very matrix."""
    SYMMETRIC = 9
    """`Auto` for a symmetric matrix, where products showed that it is one."""
    SPARSE = 10
    """`SparseDirect`."""


class Reason(IntEnum):
    """Why a dense solve comes first, or does not."""

    ITERATES = 0
    FEW = 1
    ASKED = 2
    CHEAPER_THAN_CG = 3
    CHEAPER_THAN_BICGSTAB = 4
    SPARSE_ASKED = 5
    SPARSE_PAID = 6
    """A sparse factorisation has paid for this function before."""
    GIVEN = 7
    """The user gave the matrix."""


class Way(IntEnum):
    """How conjugate gradients, or BiCGSTAB, go on after their first steps."""

    PLAIN = 0
    NEARLY_DIAGONAL = 1
    LIKELY = 2
    FLAT = 3
    RACE = 4


MEMORIES = {int(Tried.MEMORY): "the memory", int(Tried.NEW_INVERSE): "the memory with a new inverse"}


class Attempt(NamedTuple):
    """One solver, how it ended, and its own steps."""

    solver: int
    status: int
    steps: int


ATTEMPT_FIELDS = len(Attempt._fields)


class Numbers(NamedTuple):
    """What the sentence needs to know of one problem: integers."""

    unknowns: int
    few: int
    """The number of unknowns up to which a dense solve comes first, for `FEW` and `ASKED`; else the steps of the
    iteration below which it does."""
    reason: int
    way: int
    first: int
    """The steps of plain CG, or of plain BiCGSTAB, before it goes on in another way."""
    tenths: int
    """Ten times the digits that they won."""
    likely: int
    """The steps below which their pace was to solve the problem, for `Way.LIKELY`."""
    probes: int
    """The products that an estimate of the diagonal, or of the sizes, took."""
    diagonal: int
    """The steps of CG with the diagonal, or of BiCGSTAB scaled by the sizes of rows and columns."""
    orthogonal: int
    """The steps of CG with orthogonal residuals, or of plain BiCGSTAB after the first."""
    by_diagonal: int
    """Whether the method with the diagonal is the one that was chosen."""
    colours: int
    """The groups of columns of a sparse matrix."""
    fill: int
    """Ten times the entries of its factors beside those of its pattern."""
    attempts: tuple[Attempt, ...]

    @staticmethod
    def of(row: Sequence[int]) -> Numbers:
        """Return the numbers of a row: one for each field, and three for each attempt."""
        count = len(row) - ATTEMPT_FIELDS * MOST_ATTEMPTS
        rest = [Attempt(*row[i : i + ATTEMPT_FIELDS]) for i in range(count, len(row), ATTEMPT_FIELDS)]
        return Numbers._make([*row[:count], tuple([a for a in rest if a.solver != Tried.NONE])])

    @property
    def kind(self) -> tuple[Any, ...]:
        """What decides the words. Problems of one kind differ in their numbers alone."""
        ways = self.way, self.diagonal > 0, self.orthogonal > 0, self.by_diagonal
        return self.reason, ways, self.is_zero, tuple([(a.solver, a.status) for a in self.attempts])

    @property
    def is_zero(self) -> bool:
        """Whether no step was needed."""
        last = self.attempts[-1]
        if last.solver == Tried.SPARSE:
            return False
        return last.status == Status.CONVERGED and sum(a.steps for a in self.attempts) == 0 and self.unknowns > 0


FIELDS = len(Numbers._fields) - 1 + MOST_ATTEMPTS * ATTEMPT_FIELDS
"""The numbers of one problem."""


def sentence(numbers: Any) -> str:
    """Return the sentence for a NumPy array of integers, (*batch, fields).

    Problems of one kind have one story. Otherwise the problems of each kind are counted.
    """
    problems = [Numbers.of(row) for row in numbers.reshape((-1, numbers.shape[-1])).tolist()]
    if not problems:
        return "no problem"
    if len({problem.kind for problem in problems}) == 1:
        front = f"{len(problems)} problems: " if len(problems) > 1 else ""
        return front + "; ".join(_story(problems))
    found: dict[str, list[Numbers]] = {}
    for problem in problems:
        found.setdefault(_in_short(problem), []).append(problem)
    counts = sorted(found.items(), key=lambda item: -len(item[1]))
    clauses = [f"{len(some)} {what}{_steps_in_short(some)}" for what, some in counts]
    word = " problem " if len(counts[0][1]) == 1 else " problems "
    return ", ".join([clauses[0].replace(" ", word, 1), *clauses[1:]])


def _story(problems: Sequence[Numbers]) -> list[str]:
    """Return what happened to some problems of one kind, one part for each thing."""
    one = problems[0]
    if one.is_zero:
        return ["no step: the right-hand side is zero, or the start is the solution"]
    places = list(range(len(one.attempts)))
    parts, memory = [], MEMORIES.get(one.attempts[0].solver)
    if memory is not None:
        parts = [_ended(memory, one.attempts[0].status, [p.attempts[0].steps for p in problems])]
        places = places[1:]
    if not places:
        return parts
    first, *later = places
    solver = one.attempts[first].solver
    if solver == Tried.SPARSE:
        why = {Reason.SPARSE_ASKED: ", as asked for", Reason.SPARSE_PAID: ", which paid before"}
        parts += [f"sparse LU{why.get(Reason(one.reason), '')}: {_factorised(problems, first)}"]
    elif solver == Tried.SYMMETRIC:
        parts += [_followed(problems, first)]
    else:
        parts += [_dense(problems, first)] if solver == Tried.DIRECT else _iterated(problems, first)
    return parts + [_followed(problems, i) for i in later]


def _dense(problems: Sequence[Numbers], place: int) -> str:
    one, count = problems[0], _count(problems[0].unknowns, "unknown")
    if one.reason == Reason.GIVEN:
        return f"the given matrix was factorised{_but(one.attempts[place].status)}"
    why = {
        Reason.FEW: f"{count}, and up to {one.few} are never iterated",
        Reason.ASKED: f"{count}, and dense={one.few} asks for it",
        Reason.CHEAPER_THAN_CG: f"{count} cost less than {one.few} steps of CG",
        Reason.CHEAPER_THAN_BICGSTAB: f"{count} cost less than {one.few} steps of BiCGSTAB",
    }[Reason(one.reason)]
    return f"dense: {why}{_but(one.attempts[place].status)}"


def _iterated(problems: Sequence[Numbers], place: int) -> list[str]:
    """Return the parts of a story about CG or BiCGSTAB."""
    one, status = problems[0], problems[0].attempts[place].status
    if one.attempts[place].solver == Tried.BICGSTAB:
        return _scaled(problems, place)
    if one.way == Way.PLAIN:
        return [_ended("plain CG", status, [p.attempts[place].steps for p in problems])]
    start = _began("plain CG", problems)
    probes = _count(max(p.probes for p in problems), "product")
    by_diagonal, orthogonal = [p.diagonal for p in problems], [p.orthogonal for p in problems]
    other = "CG with orthogonal residuals"
    if one.way == Way.NEARLY_DIAGONAL:
        nearly = f"{probes} say that the matrix is nearly diagonal"
        return [start, nearly, _ended("CG with its diagonal", status, by_diagonal)]
    if one.way == Way.LIKELY:
        return [start, f"at this pace fewer than {one.likely} were to come", _ended(other, status, orthogonal)]
    if one.way == Way.FLAT:
        return [start, f"the entries of the diagonal differ little, say {probes}", _ended(other, status, orthogonal)]
    start_of_race = [start, f"the diagonal from {probes}"]
    if not one.orthogonal:
        return [*start_of_race, _ended("CG with it", status, by_diagonal)]
    with_it, lost = "CG with the diagonal", "{} lost a race after {}"
    if one.by_diagonal:
        return [*start_of_race, lost.format(other, _steps(orthogonal)), _ended(with_it, status, by_diagonal)]
    return [*start_of_race, lost.format(with_it, _steps(by_diagonal)), _ended(other, status, orthogonal)]


def _scaled(problems: Sequence[Numbers], place: int) -> list[str]:
    """Return the parts of a story about BiCGSTAB."""
    one, status, name = problems[0], problems[0].attempts[place].status, "BiCGSTAB"
    if one.way == Way.PLAIN:
        return [_ended(name, status, [p.attempts[place].steps for p in problems])]
    start, probes = _began(name, problems), _count(max(p.probes for p in problems), "product")
    scaled, plain = [p.diagonal for p in problems], [p.orthogonal for p in problems]
    if one.way == Way.FLAT:
        return [start, f"rows and columns differ little in size, say {probes}", _ended(name, status, plain)]
    start_of_race = [start, f"the sizes of rows and columns from {probes}"]
    with_sizes, lost = f"{name} scaled by them", "{} lost a race after {}"
    if not one.by_diagonal:
        return [*start_of_race, lost.format(with_sizes, _steps(scaled)), _ended(name, status, plain)]
    race = [lost.format(name, _steps(plain))] if one.orthogonal else []
    return [*start_of_race, *race, _ended(with_sizes, status, scaled)]


def _began(name: str, problems: Sequence[Numbers]) -> str:
    """Return what the first steps of an iteration won."""
    won = _span([p.tenths / 10 for p in problems])
    digits = "no digit" if max(p.tenths for p in problems) < 1 else f"{won} digit{'' if won == '1' else 's'}"
    return f"{name} won {digits} in {_steps([p.first for p in problems])}"


def _factorised(problems: Sequence[Numbers], place: int) -> str:
    """Return what a sparse factorisation took. There are no colours without a pattern, and no fill without factors."""
    count, fills = max(p.colours for p in problems), [p.fill / 10 for p in problems]
    if count == 0 and problems[0].attempts[place].status == Status.WRONG_PATTERN:
        return "no pattern was found, for the matrix has too many entries"
    factors = f", factors {_span(fills)} times as full as the matrix" if max(fills) > 0 else ""
    return f"{_count(count, 'colour')}{factors}{_but(problems[0].attempts[place].status)}"


def _followed(problems: Sequence[Numbers], place: int) -> str:
    """Return the part of a story about a solver that took over."""
    attempt = problems[0].attempts[place]
    if attempt.solver == Tried.SPARSE:
        return f"a sparse LU took over: {_factorised(problems, place)}"
    if attempt.solver == Tried.DIRECT:
        return f"a dense solve of {_count(problems[0].unknowns, 'unknown')} took over{_but(attempt.status)}"
    if attempt.solver == Tried.LEAST_NORM:
        left = "" if attempt.status == Status.CONVERGED else ", and a residual remains"
        return f"the solution of least norm took its place{left}"
    if attempt.solver == Tried.SYMMETRIC:
        name = "2 products say that the matrix is symmetric; CG or MINRES"
        return _ended(name, attempt.status, [p.attempts[place].steps for p in problems])
    name = "MINRES" if attempt.solver == Tried.MINRES else "IDR(8)"
    return _ended(name, attempt.status, [p.attempts[place].steps for p in problems])


def _ended(name: str, status: int, steps: Sequence[int]) -> str:
    """Return how an iteration ended."""
    ends = {
        Status.CONVERGED: "took {}",
        Status.MAX_ITER: "gave up after {}",
        Status.STAGNATED: "gave up after {}",
        Status.INDEFINITE: "met negative curvature after {}",
        Status.SINGULAR: "broke down after {}" if name.startswith("BiCGSTAB") else "found the matrix singular after {}",
        Status.NON_FINITE: "met numbers that are not finite after {}",
    }
    known = {int(code): text for code, text in ends.items()}
    return f"{name} {known.get(status, 'ended ' + name_of(status) + ' after {}').format(_steps(steps))}"


def _but(status: int) -> str:
    """Return what is to be said of a dense solve that failed."""
    known = {
        int(Status.CONVERGED): "",
        int(Status.SINGULAR): ", but the matrix is singular",
        int(Status.NON_FINITE): ", but a number is not finite",
        int(Status.WRONG_PATTERN): ", but the pattern lacks an entry",
    }
    return known.get(status, f", which ended {name_of(status)}")


def _in_short(problem: Numbers) -> str:
    """Return the way of one problem without its numbers."""
    if problem.is_zero:
        return "without a step"
    last, before = problem.attempts[-1], problem.attempts[:-1]
    what = {
        Tried.DIRECT: "by the given matrix" if problem.reason == Reason.GIVEN else "dense",
        Tried.CG: _kind_of_cg(problem),
        Tried.BICGSTAB: "by scaled BiCGSTAB" if problem.by_diagonal else "by BiCGSTAB",
        Tried.LEAST_NORM: "by least norm",
        Tried.MINRES: "by MINRES",
        Tried.IDR: "by IDR(8)",
        Tried.MEMORY: "by the memory",
        Tried.NEW_INVERSE: "by the memory with a new inverse",
        Tried.SYMMETRIC: "by CG or MINRES",
        Tried.SPARSE: "by sparse LU",
    }[Tried(last.solver)]
    names = {Tried.DIRECT: "a dense solve", Tried.CG: "CG", Tried.BICGSTAB: "BiCGSTAB", **MEMORIES}
    after = f" after {' and '.join(names[Tried(a.solver)] for a in before)}" if before else ""
    return f"{what}{after}{'' if last.status == Status.CONVERGED else ' but ' + name_of(last.status)}"


def _kind_of_cg(problem: Numbers) -> str:
    if problem.way == Way.PLAIN:
        return "by plain CG"
    return "by CG with the diagonal" if problem.by_diagonal else "by CG with orthogonal residuals"


def _steps_in_short(problems: Sequence[Numbers]) -> str:
    """Return the steps of all iterations of some problems, if there are any."""
    dense = (Tried.DIRECT, Tried.LEAST_NORM, Tried.SPARSE)
    steps = [sum(a.steps for a in p.attempts if a.solver not in dense) for p in problems]
    return f" in {_steps(steps)}" if any(steps) else ""


def _steps(steps: Sequence[int]) -> str:
    return f"{_span(steps)} step{'' if set(steps) == {1} else 's'}"


def _span(values: Sequence[float]) -> str:
    """Return one number, or the least and the largest of several."""
    least, largest = f"{min(values):g}", f"{max(values):g}"
    return least if least == largest else f"{least} to {largest}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
