"""The worker of figure2.py: it times one network with torchdiffeq's DOPRI5 and with implicit steps, in torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torchdiffeq

import dil
import dil.linear
import dil.ode
from _nets import evaluate, network

HIDDEN = 30
SPAN = 0.1
"""Seconds from x_k to x_{k+1}, as in Table 1."""
RTOL, ATOL = 1e-7, 1e-9
"""What DOPRI5 accepts a step by, torchdiffeq's defaults, and the implicit solver its x_{k+1}."""
CLOSE = 1e-3
"""Of the experiment at equal error: the error of x_{k+1}, relative to 1 + ||x||."""
METHODS = ("dopri5", "dil", "dil_cg")


class Dynamics(torch.nn.Module):
    """h(x) = s (net(x) - x): a random network, s times as fast and s times as stiff."""

    def __init__(self, size: int, stiffness: float, seed: int) -> None:
        super().__init__()
        layers = network(np.random.default_rng(seed), (size, HIDDEN, HIDDEN, size))
        self.values = torch.nn.ParameterList([torch.tensor(x) for layer in layers for x in layer])
        self.stiffness, self.calls = stiffness, 0

    def forward(self, t: Any, x: Any) -> Any:
        """Return h(x), and count."""
        self.calls += 1
        return field(t, x, list(self.values), self.stiffness)


def field(_: Any, x: Any, values: Any, stiffness: float) -> Any:
    layers = list(zip(values[::2], values[1::2], strict=True))
    return stiffness * (evaluate(layers, x, torch.tanh) - x)


class Timed(NamedTuple):
    """Milliseconds of the processor, forward and backward, and the error of x_{k+1} relative to 1 + ||x||."""

    forward: float
    backward: float
    error: float


@dataclass(frozen=True)
class Case:
    """One initialisation."""

    size: int
    stiffness: float
    seed: int


def measure(case: Case, rounds: int) -> dict[str, Timed]:
    """Time each method on one initialisation, in turn; the least of the rounds. Empty where Newton's method fails."""
    torch.set_num_threads(1)
    run = Runs(case)
    calls = {name: run.call(name) for name in METHODS}
    try:
        return timed(calls, run, rounds)
    except dil.ConvergenceError:
        return {}


def timed(calls: dict[str, Callable[[], Any]], run: Runs, rounds: int) -> dict[str, Timed]:
    laps: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    errors = {}
    for i in range(rounds + 1):
        for name in list(calls)[:: -1 if i % 2 else 1]:
            started = time.process_time()
            x = calls[name]()
            between = time.process_time()
            x.backward(run.cotangent)
            laps[name].append((between - started, time.process_time() - between))
            errors[name] = float((x.detach() - run.exact).norm() / (1 + run.exact.norm()))
    best = {name: np.min(laps[name][1:], axis=0) * 1e3 for name in calls}
    return {name: Timed(float(a), float(b), errors[name]) for name, (a, b) in best.items()}


class Runs:
    """The ways from x_k to x_{k+1} for one network."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.dynamics = Dynamics(case.size, case.stiffness, case.seed)
        rng = np.random.default_rng([case.seed, 1])
        self.x, self.cotangent = (torch.tensor(rng.standard_normal(case.size)) for _ in range(2))
        self.t = torch.tensor([0.0, SPAN], dtype=torch.float64)
        with torch.no_grad():
            exact = torchdiffeq.odeint(self.dynamics, self.x, self.t, rtol=1e-10, atol=1e-12, method="dopri5")
        self.exact = exact[-1]

    def call(self, name: str) -> Callable[[], Any]:
        """Return the call of the experiment at equal acceptance."""
        if name == "dopri5":
            return lambda: self.dopri5(RTOL, ATOL)
        solver = dil.linear.NormalCG(rtol=RTOL) if name == "dil_cg" else dil.linear.Auto()
        return lambda: self.implicit("implicit_euler", 1, linear_solver=solver)

    def dopri5(self, rtol: float, atol: float) -> Any:
        """Return x_{k+1} with the adjoint behind it."""
        options: dict[str, Any] = {"rtol": rtol, "atol": atol, "method": "dopri5"}
        return torchdiffeq.odeint_adjoint(self.dynamics, self.x, self.t, **options)[-1]

    def implicit(self, method: str, steps: int, **options: Any) -> Any:
        """Return x_{k+1} with the theorem behind it."""
        args = (list(self.dynamics.values), self.case.stiffness)
        options = {"solver": dil.ode.StepNewton(rtol=RTOL), "on_failure": "raise", **options}
        return dil.ode.odeint(field, self.x, self.t, args, method=method, steps=steps, **options)[-1]


class Close(NamedTuple):
    """A method that comes within CLOSE, at the least work tried."""

    work: int
    """Steps of an implicit method; evaluations forward of DOPRI5."""
    time: Timed


def close(case: Case, methods: tuple[str, ...], rounds: int, most: int = 512) -> dict[str, Close]:
    """Time the methods with steps, doubled, or tolerances, divided by ten, such that x_{k+1} is within CLOSE."""
    torch.set_num_threads(1)
    run = Runs(case)
    calls: dict[str, Callable[[], Any]] = {}
    work: dict[str, int] = {}
    for method in methods:
        errors = ((n, run_error(run, lambda n=n, method=method: run.implicit(method, n))) for n in powers(most))
        steps = next((n for n, error in errors if error <= CLOSE), None)
        if steps is not None:
            calls[method] = lambda method=method, steps=steps: run.implicit(method, steps)
            work[method] = steps
    tol = next(x for x in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5) if run_error(run, lambda x=x: run.dopri5(x, x)) <= CLOSE)
    run.dynamics.calls = 0
    run.dopri5(tol, tol)
    calls["dopri5"], work["dopri5"] = (lambda: run.dopri5(tol, tol)), run.dynamics.calls
    return {name: Close(work[name], found) for name, found in timed(calls, run, rounds).items()}


def powers(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length())]


def run_error(run: Runs, call: Callable[[], Any]) -> float:
    """Return the error of x_{k+1}, infinite where Newton's method fails in a step."""
    try:
        with torch.no_grad():
            return float((call() - run.exact).norm() / (1 + run.exact.norm()))
    except dil.ConvergenceError:
        return float("inf")
