"""The cases of benchmarks/gpu.py. Each runs in a separate process: `python _gpu.py STEP FRAMEWORK SIZES...`."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from typing import Any

import numpy as np

import dil

RTOL = 1e-8


class Case:
    """The layer y = argmin_u 1/2 u^T (D + L) u - theta^T u on one framework: a chain of springs, condition number 200.

    `hand` is the same conjugate gradients written in the framework's own words, with the product by hand.
    """

    def __init__(self, framework: str, shape: tuple[int, ...], device: str | None) -> None:
        self.framework = framework
        self.b = dil.backend(framework, device=device, dtype="float64")
        self.scales = self.b.asarray(np.linspace(1.0, 200.0, shape[-1]))
        self.theta = self.b.asarray(np.random.default_rng(0).standard_normal(shape))
        self.v = self.b.asarray(np.random.default_rng(1).standard_normal(shape))
        self.reads = 0
        batch_ndim = len(shape) - 1
        self.layer = dil.argmin(self.score, self.solver, linear_solver=self.counted, batch_ndim=batch_ndim)

    def product(self, u: Any) -> Any:
        """Return (D + L) u."""
        xp = self.b.xp
        step = u[..., 1:] - u[..., :-1]
        zero = 0.0 * u[..., :1]
        return self.scales * u - xp.concat([step, zero], axis=-1) + xp.concat([zero, step], axis=-1)

    def score(self, u: Any, theta: Any) -> Any:
        """Return the score, one number for each problem."""
        from array_api_compat import array_namespace

        xp = array_namespace(u)
        step = u[..., 1:] - u[..., :-1]
        return (
            0.5 * xp.sum(u * u * self.scales, axis=-1) + 0.5 * xp.sum(step * step, axis=-1) - xp.sum(u * theta, axis=-1)
        )

    def solver(self, fun: Any, init: Any, theta: Any) -> Any:
        """Return the solution, without a derivative: the forward pass is not what is measured."""
        return dil.linear.CG(rtol=1e-10)(self.product, self.b.module.constant(theta)).value

    def counted(self, A: Any, b: Any, *, loop: Callable[..., Any]) -> dil.Solution:
        """Solve by CG, and count how often the loop asks for its condition."""

        def counting(cond: Any, body: Any, state: Any) -> Any:
            def asked(s: Any) -> Any:
                self.reads += 1
                return cond(s)

            return loop(asked, body, state)

        self.solution = dil.linear.CG(rtol=RTOL)(A, b, loop=counting)
        return self.solution

    def hand(self, v: Any) -> Any:
        """Return H^-1 v by textbook conjugate gradients that read the residual in each step."""
        xp = self.b.xp
        x, r, p = 0.0 * v, v, v
        rr = goal = xp.sum(r * r, axis=-1, keepdims=True)
        while bool(xp.any(rr > RTOL**2 * goal)):
            Hp = self.product(p)
            alpha = rr / xp.sum(p * Hp, axis=-1, keepdims=True)
            x, r = x + alpha * p, r - alpha * Hp
            new = xp.sum(r * r, axis=-1, keepdims=True)
            p, rr = r + (new / rr) * p, new
        return x

    def hand_jax(self, v: Any) -> Any:
        """Return the same as one compiled loop."""
        import jax

        def step(s: Any) -> Any:
            x, r, p, rr = s
            Hp = self.product(p)
            alpha = rr / (p * Hp).sum(axis=-1, keepdims=True)
            x, r = x + alpha * p, r - alpha * Hp
            new = (r * r).sum(axis=-1, keepdims=True)
            return x, r, r + (new / rr) * p, new

        rr = (v * v).sum(axis=-1, keepdims=True)
        return jax.lax.while_loop(lambda s: (s[3] > RTOL**2 * rr).any(), step, (0.0 * v, v, v, rr))[0]

    def runners(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Return the backward pass of the layer, and the loop by hand."""
        if self.framework == "jax":
            import jax

            pull = jax.jit(jax.vjp(self.layer, self.theta)[1])
            hand = jax.jit(self.hand_jax)
            return lambda: pull(self.v)[0], lambda: hand(self.v)
        _, pull = dil.vjp(self.layer, self.theta)
        return lambda: pull(self.v)[0], lambda: self.hand(self.v)

    def wait(self, x: Any) -> Any:
        """Return x when the device has computed it."""
        if self.framework == "torch" and x.is_cuda:
            import torch

            torch.cuda.synchronize()
        elif self.framework == "cupy":
            import cupy

            cupy.cuda.Device().synchronize()
        elif self.framework == "jax":
            x.block_until_ready()
        return x

    def peak(self) -> int | None:
        """Return the most bytes of the device's memory in use so far; None where the framework does not say."""
        if self.framework == "torch" and self.theta.is_cuda:
            import torch

            return int(torch.cuda.max_memory_allocated())
        if self.framework == "cupy":
            import cupy

            return int(cupy.get_default_memory_pool().total_bytes())
        if self.framework == "jax":
            stats = next(iter(self.theta.devices())).memory_stats()
            return None if stats is None else int(stats["peak_bytes_in_use"])
        return None


def backward(case: Case, seconds: float) -> dict[str, Any]:
    """Time the backward pass against the loop by hand, in turn; ratios of pairs, with their quartiles."""
    layer, hand = case.runners()
    ours, theirs = case.wait(layer()), case.wait(hand())
    a, b = case.b.to_numpy(ours), case.b.to_numpy(theirs)
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < 3 or (time.perf_counter() < end and len(pairs) < 50):
        begins = time.perf_counter()
        case.wait(layer())
        middle = time.perf_counter()
        case.wait(hand())
        pairs.append((middle - begins, time.perf_counter() - middle))
    ratios = [x / y for x, y in pairs]
    low, _, high = quantiles(ratios, n=4)
    error = float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
    return {
        "layer ms": 1e3 * median(x for x, _ in pairs),
        "hand ms": 1e3 * median(y for _, y in pairs),
        "ratio": median(ratios),
        "quartiles": [low, high],
        "difference": error,
        "pairs": len(pairs),
    }


def reads(case: Case, seconds: float) -> dict[str, Any]:
    """Count the reads of the loop's condition, and what torch itself says of synchronisations, in one backward pass."""
    layer, _ = case.runners()
    case.wait(layer())
    case.reads, synchronisations = 0, None
    if case.framework == "torch" and case.theta.is_cuda:
        import torch

        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always")
            layer()
        torch.cuda.set_sync_debug_mode("default")
        synchronisations = sum("synchroniz" in str(one.message) for one in met)
    else:
        layer()
    if case.framework == "jax":  # the loop runs on the device, and its condition is asked there
        return {"iterations": None, "reads of the condition": 0, "synchronisations": None}
    steps = int(case.b.to_numpy(case.solution.iterations).max())
    return {"iterations": steps, "reads of the condition": case.reads, "synchronisations": synchronisations}


def memory(case: Case, seconds: float) -> dict[str, Any]:
    """Return the peak memory of one forward and one backward pass, in vectors of the unknown."""
    layer, _ = case.runners()
    case.wait(layer())
    peak, size = case.peak(), int(np.prod(case.theta.shape)) * 8
    return {"peak MiB": None if peak is None else peak / 2**20, "vectors": None if peak is None else peak / size}


STEPS: dict[str, Callable[[Case, float], dict[str, Any]]] = {"backward": backward, "reads": reads, "memory": memory}


def main(step: str, framework: str, device: str, seconds: str, sizes: Sequence[str]) -> None:
    """Print one row as JSON for each size, such as 1000 or 256x50."""
    if framework == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    for size in sizes:
        shape = tuple(int(n) for n in size.split("x"))
        row = STEPS[step](Case(framework, shape, device or None), float(seconds))
        print(json.dumps({"framework": framework, "unknowns": size, **row}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])
