"""A layer over eight devices of JAX: the batch sharded, then the unknown of one large problem.

    python docs/examples/sharding.py

No code of the layer knows of it: the arguments are placed, `jax.jit` does the rest. The eight devices are eight parts
of the host's processor, so that it runs anywhere; the communication that is counted is that of the compiled program.
"""

import os

# to be set before JAX starts; on eight real devices both lines go
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import re
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import dil

jax.config.update("jax_enable_x64", True)

DEVICES = 8
TOLERANCE = 1e-10
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

# --- two layers ------------------------------------------------------------------------------------------------------


def softened(u: jax.Array, x: jax.Array, theta: jax.Array) -> jax.Array:
    """Score a batch, u and x: (batch, n); theta: (n,) is shared by all."""
    return jnp.sum(jnp.log(jnp.cosh(u @ jnp.diag(theta) @ MIX)) + 0.5 * (u - x) ** 2, axis=-1)


def chain(u: jax.Array, x: jax.Array, theta: jax.Array) -> jax.Array:
    """Score one closed chain whose neighbours are coupled, u and x: (n,); theta: (2,).

    Cut into the blocks that the devices hold: what is coupled across a seam is one number of each block.
    """
    blocks = u.reshape(DEVICES, -1)
    seams = blocks[:, 0] - jnp.roll(blocks[:, -1], 1)
    coupling = jnp.sum((blocks[:, 1:] - blocks[:, :-1]) ** 2) + jnp.sum(seams**2)
    return 0.5 * theta[0] * coupling + 0.25 * theta[1] * jnp.sum(u**4) + 0.5 * jnp.sum((u - x) ** 2)


def rolled(u: jax.Array, x: jax.Array, theta: jax.Array) -> jax.Array:
    """Score the same chain in the shorter way, which costs more."""
    coupling = jnp.sum((u - jnp.roll(u, 1)) ** 2)
    return 0.5 * theta[0] * coupling + 0.25 * theta[1] * jnp.sum(u**4) + 0.5 * jnp.sum((u - x) ** 2)


MIX = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)))
# CG never builds a matrix, as the default may, which no device would hold for a large problem. "nan" puts the failures
# into the gradients: "warn" and "raise" call back to Python, for which XLA gathers the statuses after each solve.
make = partial(dil.argmin, linear_solver=dil.linear.CG(), on_failure="nan")
BATCHED = make(softened, dil.solvers.Newton(), batch_ndim=1)
CHAIN = make(chain, dil.solvers.Newton())
ROLLED = make(rolled, lambda fun, init, x, theta: init)  # compiled for what its backward pass sends, and never run


def loss(layer: dil.Layer, x: jax.Array, theta: jax.Array) -> jax.Array:
    """Return a loss of the solution."""
    return jnp.sum(jnp.sin(layer(x, theta, init=jnp.zeros_like(x))))


# --- what the compiled program sends ---------------------------------------------------------------------------------


def backward_loops(program: str) -> list[list[str]]:
    """Return the collectives of each loop of a backward solve, in the HLO of a program."""
    parts: dict[str, list[str]] = {}
    name = ""
    for line in program.splitlines():
        if line.endswith("{") and (opened := re.match(r"(?:ENTRY )?%?([\w.-]+) ", line)):
            name = opened[1]
            parts[name] = []
        elif name:
            parts[name].append(line)

    def sent(part: str) -> list[str]:
        """Name the collectives of a computation and of those that it calls, with the shape that they give."""
        found = []
        for line in parts[part]:
            if op := re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", line):
                found.append(f"{op[2]} of {re.sub(r'{[^}]*}', '', op[1])}")
            called = re.findall(r"(?:calls|body|condition)=%?([\w.-]+)", line)
            found += [one for inner in called for one in sent(inner)]
        return found

    lines = [line for part in parts.values() for line in part]
    loops = [re.search(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)", line) for line in lines]
    return [
        sent(loop[1]) + sent(loop[2])
        for loop, line in zip(loops, lines, strict=True)
        if loop and "transpose(" in line  # the reverse mode of JAX
    ]


# --- the comparison --------------------------------------------------------------------------------------------------


def compare(title: str, layer: dil.Layer, x: jax.Array, theta: jax.Array, mesh: Mesh) -> bool:
    """Print the difference of the gradients on one device and on all, and what is sent between them."""
    on_all = place(x, theta, mesh)
    compiled = gradient(layer).lower(*on_all).compile()
    single, sharded = gradient(layer)(x, theta), compiled(*on_all)
    print(f"{title}: x {x.shape}, {x.size // DEVICES} numbers on each of {DEVICES} devices; theta {theta.shape} on all")
    agree = [agrees(name, a, b) for name, a, b in zip(("x", "theta"), single, sharded, strict=True)]
    tell(compiled.as_text())
    return all(agree)


def gradient(layer: dil.Layer) -> Any:
    """Return the function that gives the gradients in x and theta."""
    return jax.jit(jax.grad(partial(loss, layer), argnums=(0, 1)))


def place(x: jax.Array, theta: jax.Array, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """Shard x over its first axis and replicate theta: all that there is to do."""
    spread, copied = PartitionSpec("devices"), PartitionSpec()
    return jax.device_put(x, NamedSharding(mesh, spread)), jax.device_put(theta, NamedSharding(mesh, copied))


def agrees(name: str, single: jax.Array, sharded: jax.Array) -> bool:
    """Print the difference of two gradients, over the largest entry, and whether it is small."""
    difference = float(np.max(np.abs(np.asarray(single) - np.asarray(sharded))) / np.max(np.abs(np.asarray(single))))
    word = "agrees" if difference <= TOLERANCE else "DIFFERS"
    print(f"  gradient in {name:6} differs by {difference:.1e}, {word}; on {len(sharded.sharding.device_set)} devices")
    return difference <= TOLERANCE


def tell(program: str) -> None:
    """Print what each iteration sends."""
    for loop in backward_loops(program):
        counts = [f"{loop.count(name)} x {name}" for name in dict.fromkeys(loop)]
        print("  an iteration of the backward CG sends " + (", ".join(counts) or "nothing"))


def main() -> int:
    """Return the exit status: 1 if the gradients differ."""
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))
    rng = np.random.default_rng(1)
    batch, x = jnp.asarray(rng.normal(size=(64, 6))), jnp.asarray(rng.normal(size=DEVICES * 64))
    theta = jnp.asarray([2.0, 1.0])
    agree = [
        compare("A batch", BATCHED, batch, jnp.linspace(0.5, 1.5, 6), mesh),
        compare("One problem", CHAIN, x, theta, mesh),
    ]
    print("The same problem, its score written with jnp.roll of the whole u")
    tell(gradient(ROLLED).lower(*place(x, theta, mesh)).compile().as_text())
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
