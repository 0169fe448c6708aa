"""What the suite runs on: every registered backend, and variants of some that count as backends of their own.

An engine evaluates a function and its pullback in one way: by dil's transforms, by the framework's own, or under a
compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import dil

Pullback = Callable[..., tuple[Any, tuple[Any, ...]]]
Pushforward = Callable[..., tuple[Any, Any]]


def by_dil(fn, args, cotangent):
    y, pull = dil.vjp(fn, *args)
    return y, pull(cotangent)


def by_jit(fn, args, cotangent):
    import jax

    def both(args, cotangent):
        y, pull = jax.vjp(fn, *args)
        return y, pull(cotangent)

    return jax.jit(both)(args, cotangent)


def by_torch_func(fn, args, cotangent):
    import torch

    y, pull = torch.func.vjp(fn, *args)
    return y, pull(cotangent)


def by_backward(fn, args, cotangent):
    leaves = [x.detach().clone().requires_grad_() for x in args]
    y = fn(*leaves)
    y.backward(cotangent)
    return y.detach(), tuple(x.grad for x in leaves)


def forward_by_jit(fn, args, tangents):
    import jax

    return jax.jit(lambda args, tangents: jax.jvp(fn, args, tangents))(args, tangents)


def forward_by_torch_func(fn, args, tangents):
    import torch

    return torch.func.jvp(fn, args, tangents)


def forward_by_dual_numbers(fn, args, tangents):
    from torch.autograd import forward_ad

    with forward_ad.dual_level():
        y = fn(*(forward_ad.make_dual(x, t) for x, t in zip(args, tangents, strict=True)))
        return forward_ad.unpack_dual(y)


# `strict:device` stands for CuPy and CUDA: its arrays raise where they are converted to NumPy's or meet another device
VARIANTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "array_api_strict": [("strict:device", {"device": "device1"})],
    "jax": [("jax:jit", {"pullback": by_jit, "pushforward": forward_by_jit})],
    "torch": [
        ("torch:func", {"pullback": by_torch_func, "pushforward": forward_by_torch_func}),
        ("torch:backward", {"pullback": by_backward, "pushforward": forward_by_dual_numbers}),
        ("torch:cuda", {"device": "cuda"}),
    ],
}
EXAMPLES = {"jax": 4}
"""Random examples of a property test; JAX compiles each."""


@dataclass(frozen=True)
class Engine:
    """A backend, and a way to differentiate on it."""

    name: str
    backend: str
    device: str | None = None
    reason: str | None = None
    pullback: Pullback = by_dil
    pushforward: Pushforward = dil.jvp

    @property
    def plain(self) -> bool:
        """Whether it differentiates by dil's own transforms."""
        return self.pullback is by_dil

    @property
    def handle(self):
        return dil.backend(self.backend, device=self.device, dtype="float64")

    @property
    def xp(self):
        return self.handle.xp

    @property
    def examples(self) -> int:
        return EXAMPLES.get(self.backend, 20)

    def asarray(self, x):
        return self.handle.asarray(np.asarray(x))

    def to_numpy(self, x):
        """Return an array as a NumPy array, after a check that it is on the engine's device."""
        if self.device is not None and hasattr(x, "device"):
            assert self.device in str(x.device), f"an array is on {x.device}, expected {self.device}"
        return self.handle.to_numpy(x)

    def gradients(self, fn, args, cotangent=None):
        """Return fn(*args) and the cotangents of the arguments, all as NumPy arrays."""
        args = tuple(self.asarray(x) for x in args)
        ct = self.asarray(1.0 if cotangent is None else cotangent)
        y, grads = self.pullback(fn, args, ct)
        return self.to_numpy(y), tuple(self.to_numpy(g) for g in grads)

    def tangent(self, fn, args, tangents):
        """Return the derivative of fn at args along the tangents as a NumPy array: forward mode."""
        args, tangents = (tuple(self.asarray(x) for x in xs) for xs in (args, tangents))
        return self.to_numpy(self.pushforward(fn, args, tangents)[1])


def engines() -> list[Engine]:
    """List the engines of every registered backend, with the reason why one cannot run here."""
    found = []
    for info in dil.backends():
        found.append(Engine(info.name, info.name, reason=info.reason))
        for name, options in VARIANTS.get(info.name, []):
            reason = info.reason or _lacks_device(info, options.get("device"))
            found.append(Engine(name, info.name, reason=reason, **options))
    return found


def _lacks_device(info, device):
    if device is None or any(d.startswith(device) for d in info.devices):
        return None
    return f"{info.name} sees no {device!r} device here, only {', '.join(info.devices)}"
