"""Small fully connected networks with tanh, as lists of (weights, biases) that every framework accepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Layers = list[tuple[Any, Any]]


def network(rng: np.random.Generator, sizes: Sequence[int]) -> Layers:
    """Return weights N(0, 1 / inputs) and biases of zero, in NumPy."""
    return [(rng.standard_normal((a, b)) / a**0.5, np.zeros(b)) for a, b in pairwise(sizes)]


def evaluate(layers: Layers, x: Any, tanh: Callable[[Any], Any]) -> Any:
    """Return the network's output at x, (*batch, inputs), in the arrays of its parameters."""
    for weights, biases in layers[:-1]:
        x = tanh(x @ weights + biases)
    weights, biases = layers[-1]
    return x @ weights + biases
