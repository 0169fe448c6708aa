"""Cases of the rules of complex arrays and of the Fourier transforms."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from tape_helpers import Case

REAL_ONLY = {
    # the standard has them for real arrays alone
    *("max", "min", "maximum", "minimum", "clip", "sort", "var", "std", "hypot", "atan2", "logaddexp", "copysign"),
    *("nextafter", "remainder"),
    # their argument decides by an order, or the cast would drop the imaginary part
    *("where#right", "getitem#scalar", "astype"),
}


ONE_DTYPE = {"meshgrid", "meshgrid#ij"}
"""Cases whose arguments must have one dtype."""


def as_complex(cases):
    """The cases with complex arguments."""
    chosen = [c for c in cases if not {c.name, c.name.partition("#")[0]} & REAL_ONLY]
    return [replace(case, numbers=("complex",)) for case in chosen]


def as_mixed(cases):
    """The cases of several arguments, every other one complex."""
    chosen = [c for c in as_complex(cases) if len(c.shapes) > 1 and c.name not in ONE_DTYPE]
    orders = {"rc": ("real", "complex"), "cr": ("complex", "real")}
    return [replace(c, name=f"{c.name}#{key}", numbers=numbers) for c in chosen for key, numbers in orders.items()]


def of_complex(name, f, shapes=((2, 3),), domain="real"):
    return Case(name, f, shapes, domain, ("complex",))


COMPLEX = [
    of_complex("conjugated", lambda xp, x: xp.conjugated(x)),
    of_complex("real_part", lambda xp, x: xp.real_part(x)),
    of_complex("imaginary_part", lambda xp, x: xp.imaginary_part(x)),
    of_complex("angle#degrees", lambda xp, x: xp.angle(x, deg=True)),
    of_complex("acosh#left", lambda xp, x: xp.acosh(x), ((2, 5),)),
    of_complex("pow#powers", lambda xp, x: x**2 + x**-1 + x**0.5 + x ** (1 + 2j), ((3,),), "positive"),
    Case("multiply#scalar", lambda xp, x: 1j * x + x * (2 - 1j), ((3,),)),
    Case("pow#complex", lambda xp, x: xp.pow(x, 0.5 + 1j), ((3,),), "positive"),
    Case("pow#base", lambda xp, x: xp.pow(1j, x) + xp.pow(-2, x * 1j), ((3,),)),
    Case("pow#negative", lambda xp, x: xp.pow(-x, x * 1j), ((3,),), "positive"),
    Case("astype#complex", lambda xp, x: xp.astype(x, xp.complex128) ** 2, ((3,),)),
    Case("sum#dtype", lambda xp, x: xp.sum(x, dtype=xp.complex128) * 1j, ((3,),)),
    Case("exp#phase", lambda xp, x: xp.exp(1j * x), ((3,),)),
    of_complex("where#real", lambda xp, x: xp.where(xp.real(x) > 0, x, 0.0)),
]

NORMS = ["backward", "ortho", "forward"]


def along_one(name, numbers):
    """Even and odd lengths, cut and padded, along the last axis and another one, with every norm."""
    for i, (n, axis) in enumerate([(None, 0), (None, -1), (1, 0), (2, -1), (3, 0), (7, -1), (8, 1)]):
        norm = NORMS[i % 3]
        yield Case(
            f"fft.{name}#{n},{axis},{norm}",
            lambda xp, x, n=n, axis=axis, norm=norm: getattr(xp.fft, name)(x, n=n, axis=axis, norm=norm),
            ((2, 4, 5),) if axis else ((4, 2),),
            numbers=(numbers,),
        )


def along_several(name, numbers):
    cases = [(None, None), (None, (0, 1)), (None, (1,)), ((3, 7), (0, 2)), ((2, 3), (2, 1)), ((2, 4, 6), (0, 1, 2))]
    for i, (s, axes) in enumerate(cases):
        norm = NORMS[i % 3]
        yield Case(
            f"fft.{name}#{s},{axes},{norm}",
            lambda xp, x, s=s, axes=axes, norm=norm: getattr(xp.fft, name)(x, s=s, axes=axes, norm=norm),
            ((2, 3, 4),),
            numbers=(numbers,),
        )


TRANSFORMS = [
    *(case for name in ["fft", "ifft", "irfft", "hfft"] for case in along_one(name, "complex")),
    *(case for name in ["rfft", "ihfft"] for case in along_one(name, "real")),
    *(case for name in ["fftn", "ifftn", "irfftn"] for case in along_several(name, "complex")),
    *along_several("rfftn", "real"),
    *(
        Case(
            f"fft.{name}#{axes}{numbers}",
            lambda xp, x, name=name, axes=axes: getattr(xp.fft, name)(x, axes=axes),
            ((3, 4, 5),),
            numbers=(numbers,),
        )
        for name, axes, numbers in product(["fftshift", "ifftshift"], [None, 0, (1, 2)], ["real", "complex"])
    ),
]

NUMPY_TRANSFORMS = [
    # NumPy takes real arrays everywhere, its own order of arguments, and None for norm=
    *(
        Case(f"fft.{name}#real", lambda xp, x, name=name: getattr(xp.fft, name)(x, 6, 0, None), ((4, 5),))
        for name in ["fft", "ifft", "irfft"]
    ),
    Case("fft.hfft#real", lambda xp, x: xp.fft.hfft(x, n=6, axis=0), ((4, 5),)),
    Case("fft.rfft#place", lambda xp, x: xp.fft.rfft(x, 3), ((4, 5),)),
    *(
        Case(f"fft.{name}", lambda xp, x, name=name: getattr(xp.fft, name)(x, (3, 6)), ((2, 4, 5),), numbers=(numbers,))
        for name, numbers in [("fft2", "complex"), ("ifft2", "real"), ("rfft2", "real"), ("irfft2", "complex")]
    ),
    *(  # lengths without axes are those of the last axes
        Case(f"fft.{name}#lengths", lambda xp, x, name=name: getattr(xp.fft, name)(x, s=(2, 5)), ((2, 3, 4),))
        for name in ["fftn", "ifftn"]
    ),
]
