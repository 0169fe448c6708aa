"""`einsum`, by one primitive that is its own transpose.

`einsum` reads the subscripts as NumPy does. It takes diagonals, drops axes of length one that are broadcast, and sums
over letters that occur once. `contract` gets the rest: each letter of an operand is in the result or in another
operand. So the cotangent of an operand is the contraction of that of the result with the other operands.
"""

from __future__ import annotations

import math
from string import ascii_letters, ascii_lowercase, ascii_uppercase
from typing import Any

from dil._base.typing import Namespace
from dil_backends._tape.rules.numpy_own.arrays import as_array
from dil_backends._tape.rules.numpy_own.diagonals import diagonal
from dil_backends._tape.rules.rule import Value

LARGE = 50_000
"""Products of a plain loop from which looking for a better order pays; it costs 20 microseconds. Measured on a CPU."""


def contract(xp: Namespace, *operands: Value, subscripts: str) -> Value:
    """Return the explicit einsum of raw arrays."""
    terms = subscripts.partition("->")[0].split(",")
    lengths = {
        letter: n for term, x in zip(terms, operands, strict=True) for letter, n in zip(term, x.shape, strict=True)
    }
    return xp.einsum(subscripts, *operands, optimize=math.prod(lengths.values()) > LARGE)


def contracted(xp: Namespace, c: Value, y: Value, i: int, *operands: Value, subscripts: str) -> Value:
    """Return the cotangent of the i-th operand."""
    inputs, _, output = subscripts.partition("->")
    terms = inputs.split(",")
    others = [xp.conj(x) for k, x in enumerate(operands) if k != i]
    named = ",".join([output, *terms[:i], *terms[i + 1 :]])
    return xp.contract(c, *others, subscripts=f"{named}->{terms[i]}")


def einsum(xp: Namespace, *arguments: Any, optimize: Any = False) -> Value:
    """Return the sum of products that the subscripts say. `optimize` is NumPy's; the tape chooses by itself."""
    terms, output, operands = without_ellipsis(*by_letters(xp, arguments))
    operands = [diagonals(xp, x, term) for x, term in zip(operands, terms, strict=True)]
    terms = ["".join(dict.fromkeys(term)) for term in terms]
    full = lengths_of(terms, operands)
    if len(set(output)) < len(output) or not set(output) <= set(full):
        msg = f"einsum: the letters of the output {output!r} must be different ones of the inputs {', '.join(terms)}"
        raise ValueError(msg)
    reduced = [
        without_lone(xp, x, term, [*terms[:i], *terms[i + 1 :], output], full)
        for i, (x, term) in enumerate(zip(operands, terms, strict=True))
    ]
    if len(reduced) == 1:
        x, term = reduced[0]
        return xp.permute_dims(x, tuple(map(term.index, output)))
    named = ",".join(term for _, term in reduced)
    return xp.contract(*(x for x, _ in reduced), subscripts=f"{named}->{output}")


def by_letters(xp: Namespace, arguments: Any) -> tuple[list[str], str | None, list[Value]]:
    """Return the terms of the operands, that of the output or None, and the operands. Both spellings are read."""
    first, *rest = arguments
    if isinstance(first, str):
        inputs, arrow, output = first.replace(" ", "").partition("->")
        terms, operands = inputs.split(","), [as_array(xp, x) for x in rest]
        found = output if arrow else None
    else:
        operands = [as_array(xp, x) for x in arguments[: len(arguments) // 2 * 2 : 2]]
        terms = list(map(letters, arguments[1::2]))
        found = letters(arguments[-1]) if len(arguments) % 2 else None
    if len(terms) != len(operands):
        msg = f"einsum: {len(terms)} terms were given for {len(operands)} operands"
        raise ValueError(msg)
    return terms, found, operands


def letters(sublist: Any) -> str:
    """Return the letters of a list of integers; their order is that of the integers."""
    return "".join("..." if k is ... else (ascii_uppercase + ascii_lowercase)[k] for k in sublist)


def without_ellipsis(terms: list[str], output: str | None, operands: list[Value]) -> tuple[list[str], str, list[Value]]:
    """Return the terms with letters in the place of `...`, and an output, which is NumPy's where none was given."""
    used = set("".join(terms)) | set(output or "")
    spare = [letter for letter in ascii_letters if letter not in used]
    missing = [x.ndim - len(term.replace("...", "")) for x, term in zip(operands, terms, strict=True)]
    for x, term, count in zip(operands, terms, missing, strict=True):
        if count < 0 or (count and "..." not in term):
            msg = f"einsum: the term {term!r} does not fit an operand of shape {tuple(x.shape)}"
            raise ValueError(msg)
    broadcast = "".join(spare[: max(missing)])
    expanded = [
        term.replace("...", broadcast[len(broadcast) - count :]) for term, count in zip(terms, missing, strict=True)
    ]
    if output is None:
        every = "".join(term.replace("...", "") for term in terms)
        output = "..." + "".join(sorted(letter for letter in set(every) if every.count(letter) == 1))
    elif broadcast and "..." not in output:
        msg = f"einsum: the output {output!r} must have the ellipsis of the inputs"
        raise ValueError(msg)
    return expanded, output.replace("...", broadcast), operands


def diagonals(xp: Namespace, x: Value, term: str) -> Value:
    """Return x with one axis for each letter: the diagonal where a letter occurs twice."""
    for letter in dict.fromkeys(term):
        while term.count(letter) > 1:
            first = term.index(letter)
            second = term.index(letter, first + 1)
            if x.shape[first] != x.shape[second]:
                msg = f"einsum: the axes named {letter!r} have lengths {x.shape[first]} and {x.shape[second]}"
                raise ValueError(msg)
            x = xp.moveaxis(diagonal(xp, x, 0, first, second), -1, first)
            term = term[:second] + term[second + 1 :]
    return x


def lengths_of(terms: list[str], operands: list[Value]) -> dict[str, int]:
    """Return the length of each letter. One is broadcast to any other."""
    full: dict[str, int] = {}
    for term, x in zip(terms, operands, strict=True):
        for letter, n in zip(term, x.shape, strict=True):
            known = full.setdefault(letter, n)
            if known != n and 1 not in (known, n):
                msg = f"einsum: the axes named {letter!r} have lengths {known} and {n}"
                raise ValueError(msg)
            full[letter] = n if known == 1 else known
    return full


def without_lone(xp: Namespace, x: Value, term: str, elsewhere: list[str], full: dict[str, int]) -> tuple[Value, str]:
    """Return x and its term without axes that are broadcast, and with the sum over letters that occur nowhere else."""
    short = [k for k, letter in enumerate(term) if x.shape[k] != full[letter]]
    lone = [k for k, letter in enumerate(term) if k not in short and not any(letter in other for other in elsewhere)]
    if short or lone:
        x = xp.sum(x, axis=(*short, *lone))
    return x, "".join(letter for k, letter in enumerate(term) if k not in (*short, *lone))
