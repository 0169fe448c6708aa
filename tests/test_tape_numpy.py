"""NumPy's own functions, methods and numbers on the tape, against NumPy and against finite differences."""

from __future__ import annotations

import copy
import math
import operator
import warnings
from functools import partial

import array_api_strict
import numpy as np
import pytest

import dil
from dil._base.errors import UnsupportedFunctionError
from dil_backends._tape import is_box, namespace, vjp
from dil_backends._tape.methods import ATTRIBUTES, INSTEAD, METHODS
from dil_backends._tape.rules.numpy_own import NUMPY, NUMPY_ALIASES, NUMPY_RULES
from tape_helpers import Case, assert_transposed, check, failures_of_a_wrong_formula, gradient, named, total

pytestmark = pytest.mark.filterwarnings("error")

NAN = float("nan")


def own(name, f, *shapes, domain="real"):
    """A case whose function is of NumPy: it does not use the namespace."""
    return Case(name, lambda xp, *args: f(*args), shapes, domain)


def called(name, options):
    return lambda a: getattr(np, name)(a, **options)


def with_holes(f):
    return lambda a: f(np.where(HOLES, NAN, a))


def of_subscripts(subscripts, *shapes):
    return own(f"einsum#{subscripts}{shapes}", lambda *xs: np.einsum(subscripts, *xs), *shapes)


MASK = np.asarray([[True, False, True], [False, True, True]])
HOLES = np.asarray([[False, True, False], [True, False, False]])
UNEVEN = np.asarray([0.0, 0.4, 1.5, 1.9, 3.0])

EINSUM = [
    of_subscripts("ij->ji", (2, 3)),
    of_subscripts("ij->", (2, 3)),
    of_subscripts("i->i", (3,)),
    of_subscripts("ii", (3, 3)),
    of_subscripts("ii->i", (3, 3)),
    of_subscripts("jiki->kj", (2, 3, 2, 3)),
    of_subscripts("iii->i", (2, 2, 2)),
    of_subscripts("ij,jk->ik", (2, 3), (3, 4)),
    of_subscripts("ij, jk", (2, 3), (3, 4)),
    of_subscripts("ba,b", (2, 3), (2,)),
    of_subscripts("bij,bj->bi", (2, 3, 4), (2, 4)),
    of_subscripts("i,i->", (3,), (3,)),
    of_subscripts("i,j->ij", (3,), (2,)),
    of_subscripts("ij,k", (3, 4), (3,)),
    of_subscripts("ijk,lji->lki", (3, 4, 2), (3, 4, 3)),
    of_subscripts("ij,jk,kl->il", (2, 3), (3, 2), (2, 3)),
    of_subscripts("i,ij,j->", (2,), (2, 3), (3,)),
    of_subscripts("iij,j->i", (2, 2, 3), (3,)),
    of_subscripts("ij,kl->i", (2, 3), (2, 2)),
    of_subscripts("...ij,...jk->...ik", (2, 3), (4, 3, 2)),
    of_subscripts("...ij,...jk", (4, 2, 3), (3, 2)),
    of_subscripts("j...k,lj...->lk...", (2, 2), (3, 2)),
    of_subscripts("...,...->...", (3, 2), (2,)),
    of_subscripts("...k,...nk->...", (3, 5), (3, 2, 5)),
    of_subscripts("i...->...", (2, 3)),
    of_subscripts("ij,ij->ij", (2, 1), (1, 3)),
    of_subscripts("...i->...", (2, 1, 3)),
    of_subscripts("...i,...i->...i", (2, 1, 3), (4, 3)),
    of_subscripts(",i->i", (), (3,)),
    of_subscripts("ij,jk->ik", (0, 3), (3, 4)),
    own("einsum#lists", lambda a, b: np.einsum(a, [0, 1], b, [1, 2], [2, 0]), (2, 3), (3, 4)),
    own("einsum#lists without output", lambda a, b: np.einsum(a, (..., 3, 1), b, (..., 1, 2)), (2, 2, 3), (3, 4)),
    own("einsum#raw", lambda a: np.einsum("ij,j->i", np.arange(6.0).reshape(2, 3), a), (3,)),
    own("einsum#optimize", lambda a, b: np.einsum("ij,jk->ik", a, b, optimize="greedy"), (2, 3), (3, 4)),
    own("contract", lambda a, b: np.einsum("ij,jk->ik", a, b), (2, 3), (3, 4)),
]

PRODUCTS = [
    *(
        own(f"{name}#{m}{n}", getattr(np, name), m, n)
        for name, shapes in {
            "dot": [((), (3,)), ((2, 3), ()), ((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((2, 3), (3, 2)),
                    ((2, 2, 3), (3,)), ((2, 2, 3), (3, 2)), ((2, 3), (4, 3, 2)), ((3,), (2, 3, 2)),
                    ((2, 2, 3), (2, 3, 2))],
            "inner": [((), (3,)), ((3,), ()), ((3,), (3,)), ((2, 3), (3,)), ((3,), (2, 3)), ((2, 3), (4, 3)),
                      ((2, 2, 3), (2, 3)), ((2, 3), (2, 2, 3))],
            "vdot": [((3,), (3,)), ((2, 3), (3, 2))],
            "outer": [((2,), (3,)), ((2, 2), (3,)), ((), (2,))],
            "kron": [((2, 3), (3, 2)), ((2,), (3,)), ((2,), (2, 3)), ((2, 2, 1), (3, 2)), ((), (2,)), ((2,), ())],
            "tensordot": [((2, 3, 4), (3, 4, 2))],
        }.items()
        for m, n in shapes
    ),
    own("tensordot#numbers", lambda a, b: np.tensordot(a, b, axes=[-1, 0]), (2, 3), (3, 2)),
    own("tensordot#lists", lambda a, b: np.tensordot(a, b, [[0, -1], [1, 0]]), (2, 3, 4), (4, 2, 5)),
    own("cross", np.cross, (2, 3), (2, 3)),
    own("cross#broadcast", np.cross, (2, 3), (3,)),
    own("cross#axes", lambda a, b: np.cross(a, b, axisa=0, axisb=1, axisc=0), (3, 2), (2, 3)),
    own("cross#axis", lambda a, b: np.cross(a, b, axis=0), (3, 2), (3, 2)),
    *(
        own(f"{name}#{mode}{m}{n}", lambda a, v, name=name, mode=mode: getattr(np, name)(a, v, mode), (m,), (n,))
        for name in ["convolve", "correlate"]
        for mode in ["full", "same", "valid"]
        for m, n in [(5, 3), (3, 5), (4, 2), (2, 4), (5, 4), (4, 5), (3, 3), (4, 1), (1, 3)]
    ),
    own("convolve#list", lambda a: np.convolve(a, [1.0, 2.0, 1.0]), (4,)),
    own("convolution", np.convolve, (4,), (3,)),
    *([own("matvec", np.matvec, (2, 3, 4), (4,))] if hasattr(np, "matvec") else []),  # of NumPy 2.2
    *([own("vecmat", np.vecmat, (2, 3), (3, 4))] if hasattr(np, "vecmat") else []),
]  # fmt: skip

DIAGONALS = [
    *(own(f"diag#{k}", lambda v, k=k: np.diag(v, k), (3,)) for k in [-2, -1, 0, 1, 2]),
    *(own(f"diag#matrix{k}", lambda v, k=k: np.diag(v, k), (3, 4)) for k in [-1, 0, 1]),
    own("diag#one", np.diag, (1,)),
    own("diag#empty", np.diag, (0,)),
    own("diagflat", lambda v: np.diagflat(v, 1), (2, 2)),
    own("diagonal", np.diagonal, (3, 4)),
    own("diagonal#axes", lambda a: np.diagonal(a, offset=1, axis1=2, axis2=0), (3, 2, 4)),
    own("diagonal#first", np.diagonal, (3, 4, 2)),
    own("trace", np.trace, (3, 4)),
    own("trace#axes", lambda a: np.trace(a, -1, axis1=1, axis2=2), (2, 3, 4)),
    own("trace#first", np.trace, (3, 3, 2)),
    own("tril", lambda m: np.tril(m, -1), (3, 4)),
    own("triu", lambda m: np.triu(m, k=1), (2, 3, 3)),
]

JOINING = [
    own("concatenate", lambda a, b: np.concatenate((a, b, [[1.0, 2.0, 3.0]]), 0), (2, 3), (1, 3)),
    own("concatenate#flat", lambda a, b: np.concatenate([a, b], axis=None), (2, 3), (2,)),
    own("concatenate#dtype", lambda a: np.concatenate([a, a], dtype=np.float64), (2,)),
    own("vstack#row_stack", lambda a: np.vstack([a, a], dtype=None, casting="same_kind"), (2,)),
    own("stack", lambda a, b: np.stack([a, b], 1), (2, 3), (2, 3)),
    *(
        own(f"{name}#{m}{n}", lambda a, b, name=name: getattr(np, name)([a, b, a]), m, n)
        for name in ["hstack", "vstack", "dstack", "column_stack"]
        for m, n in [((3,), (3,)), ((3, 2), (3, 2)), ((2, 1, 2), (2, 1, 2))]
    ),
    own("hstack#numbers", lambda a, b: np.hstack([a, b, 1.0]), (), ()),
    own("column_stack#mixed", lambda a, b: np.column_stack([a, b]), (3,), (3, 2)),
    own("append", lambda a, b: np.append(a, b), (2, 3), (2,)),
    own("append#number", lambda a: np.append(a, 4.0), (3,)),
    own("append#axis", lambda a, b: np.append(a, b, axis=0), (2, 3), (1, 3)),
    own("insert", lambda a, b: np.insert(a, 1, b), (3,), ()),
    own("insert#many", lambda a, b: np.insert(a, [0, 2, 3], b), (3,), (3,)),
    own("insert#axis", lambda a, b: np.insert(a, 1, b, axis=1), (2, 3), (2,)),
    own("insert#flat", lambda a: np.insert(a, 1, 5.0), (2, 3)),
    own("delete", lambda a: np.delete(a, 1, axis=1), (2, 3)),
    own("delete#flat", lambda a: np.delete(a, [0, 3]), (2, 3)),
    own("block#deep", lambda a, b: np.block([[[a], [b]], [[b], [a]]]), (2, 3), (2, 3)),
    own("block#mixed", lambda a, b: np.block([a, b]), (1, 3), (2,)),
    own("block", lambda a, b: np.block([[a, np.zeros((2, 1))], [b, 1.0]]), (2, 3), (1, 3)),
    own("block#list", lambda a, b: np.block([a, b]), (2,), (3,)),
    own("block#one", lambda a: np.block(a), (2,)),
    own("split", lambda a: np.split(a, 3), (6, 2)),
    own("split#indices", lambda a: np.split(a, [1, 3], axis=1), (2, 4)),
    own("array_split", lambda a: np.array_split(a, 3), (7,)),
    own("array_split#past", lambda a: np.array_split(a, [1, 2, 5]), (3,)),
    own("hsplit", lambda a: np.hsplit(a, 2), (2, 4)),
    own("hsplit#vector", lambda a: np.hsplit(a, 2), (4,)),
    own("vsplit", lambda a: np.vsplit(a, [1]), (2, 3)),
    own("dsplit", lambda a: np.dsplit(a, 2), (1, 2, 4)),
]

SHAPES = [
    own("reshape", lambda a: np.reshape(a, (3, -1)), (2, 3)),
    own("reshape#number", lambda a: np.reshape(a, -1), (2, 3)),
    own("reshape#F", lambda a: np.reshape(a, (3, 2), order="F"), (2, 3)),
    own("ravel", np.ravel, (2, 3)),
    own("ravel#F", lambda a: np.ravel(a, order="F"), (2, 3)),
    own("ravel#empty", np.ravel, (0, 3)),
    own("copy", lambda a: np.copy(a) * a, (3,)),
    own("astype", lambda a: np.astype(a, np.float64) * 2, (3,)),
    own("rollaxis", lambda a: np.rollaxis(a, 2), (2, 3, 4)),
    *(
        own(f"rollaxis#{i}{j}", lambda a, i=i, j=j: np.rollaxis(a, i, j), (2, 3, 4))
        for i in [0, 1, -1]
        for j in [0, 2, 3, -1]
    ),
    *(
        own(f"atleast_{n}d#{shape}", getattr(np, f"atleast_{n}d"), shape)
        for n in [1, 2, 3]
        for shape in [(), (2,), (2, 3), (2, 1, 2)]
    ),
    own("atleast_1d#two", lambda a, b: np.atleast_1d(a, b), (), (2,)),
    own("flipud", np.flipud, (2, 3)),
    own("fliplr", np.fliplr, (2, 3)),
    *(own(f"rot90#{k}", lambda m, k=k: np.rot90(m, k), (2, 3)) for k in [-1, 0, 1, 2, 3, 4]),
    own("rot90#axes", lambda m: np.rot90(m, axes=(2, 0)), (2, 3, 4)),
    own("rot90#back", lambda m: np.rot90(m, 3, axes=(1, 2)), (2, 3, 4)),
    own("roll", lambda a: np.roll(a, 1), (2, 3)),
    own("roll#lists", lambda a: np.roll(a, [1, -2], axis=[0, 1]), (2, 3)),
    own("tile", lambda a: np.tile(a, reps=(2, 1)), (3,)),
    own("tile#number", lambda a: np.tile(a, 2), (2, 3)),
    own("tile#list", lambda a: np.tile(a, [2, 2, 1]), (2, 3)),
    own("repeat", lambda a: np.repeat(a, 2, axis=1), (2, 3)),
    own("repeat#list", lambda a: np.repeat(a, [2, 0, 1]), (3,)),
    own("repeat#array", lambda a: np.repeat(a, np.asarray([2, 0, 1]), axis=1), (2, 3)),
    own("broadcast_to", lambda a: np.broadcast_to(a, (2, 3)), (3,)),
    own("broadcast_to#length", lambda a: np.broadcast_to(a[0], np.int64(3)), (2,)),
    own("broadcast_to#list", lambda a: np.broadcast_to(a, [2, 3]), (2, 1)),
    own("broadcast_arrays", lambda a, b: np.broadcast_arrays(a, b, 2.0, [1.0, 2.0, 3.0])[:2], (3,), (2, 1)),
    own("swapaxes", lambda a: np.swapaxes(a, 0, -1), (2, 3, 4)),
    *(
        own(f"pad#{mode}{width}", lambda a, mode=mode, width=width: np.pad(a, width, mode), (3, 2))
        for mode in ["constant", "edge", "reflect", "symmetric", "wrap"]
        for width in [1, (2,), (1, 2), ((1, 0), (0, 2)), ((1, 2),)]
    ),
    own("pad#dict", lambda a: np.pad(a, {-1: (1, 2)}), (3, 2)),
    own("pad#array", lambda a: np.pad(a, np.asarray([[1, 0], [0, 2]])), (3, 2)),
    own("pad#value", lambda a: np.pad(a, 1, constant_values=3.0), (3, 2)),
    own("pad#values", lambda a: np.pad(a, 1, constant_values=((1.0, 2.0), (3.0, 4.0))), (3, 2)),
    own("pad#long", lambda a: np.pad(a, 5, "reflect"), (3,)),
    Case("pad#box", lambda xp, a, b: xp.pad(a, 1, constant_values=b), ((3,), ())),
]  # fmt: skip

ELEMENTWISE = [
    own("exp2", np.exp2, (2, 3)),
    own("cbrt", np.cbrt, (3,), domain="positive"),
    own("deg2rad", np.deg2rad, (3,)),
    own("deg2rad#other", np.radians, (3,)),
    own("rad2deg", np.rad2deg, (3,)),
    own("rad2deg#other", np.degrees, (3,)),
    own("sinc", np.sinc, (2, 3)),
    own("sinc#small", lambda x: np.sinc(0.2 * x), (4,), domain="unit"),
    own("logaddexp2", np.logaddexp2, (3, 1), (2,)),
    own("fmod", np.fmod, (3, 1), (2,), domain="above"),
    own("fmod#signs", lambda a, b: np.fmod(-a, b), (3, 1), (2,), domain="above"),
    *(own(f"{name}", getattr(np, name), (3, 1), (2, 1, 4)) for name in ["fmax", "fmin"]),
    *(own(f"{name}#number", lambda a, name=name: getattr(np, name)(a, 0.1), (5,)) for name in ["fmax", "fmin"]),
    own("nan_to_num", np.nan_to_num, (3,)),
    own("nan_to_num#value", lambda a: np.nan_to_num(a, nan=1.0, posinf=2.0), (3,)),
    own("select", lambda a, b: np.select([a > 0.5, b > 0, a < -0.5], [a, b, a * b], 2.0), (5,), (5,)),
    own("select#default", lambda a, b: np.select([a > 0.5], [b], default=a), (5,), (5,)),
    own("where", lambda a: np.where(a > 0, a**2, [1.0, 2.0, 3.0]), (2, 3)),
    own("clip", lambda a: np.clip(a, a_min=-0.5, a_max=0.5), (2, 3)),
    own("clip#place", lambda a: np.clip(a, -0.5, 0.5), (2, 3)),
    own("clip#none", lambda a: np.clip(a, None, [0.1, 0.2, 0.3]), (2, 3)),
    own("clip#standard", lambda a: np.clip(a, min=0.1), (2, 3)),
    own("polyval", lambda p, x: np.polyval(p, x), (4,), (3,)),
    own("polyval#list", lambda x: np.polyval([2.0, -1.0, 3.0], x), (3,)),
    own("float_power", lambda a: np.float_power(a, 2.5), (3,), domain="positive"),
    own("real_if_close", lambda a: np.real_if_close(a) * a, (3,)),
    own("real_if_close#zero", lambda a: np.real_if_close(a + 0j) * a, (3,)),
    *(
        own(f"{name}.outer", lambda a, b, name=name: getattr(np, name).outer(a, b), (2, 2), (3,), domain="positive")
        for name in ["add", "subtract", "multiply", "divide", "maximum", "minimum", "hypot", "logaddexp", "copysign"]
    ),
    own("remainder.outer", np.remainder.outer, (2,), (3,), domain="above"),
    own("pow.outer", np.power.outer, (2,), (3,), domain="positive"),
    own("nextafter.outer", np.nextafter.outer, (2,), (3,)),
    own("atan2.outer", np.arctan2.outer, (2,), (3,), domain="positive"),
    own("add.reduce", np.add.reduce, (2, 3)),
    own("add.reduce#all", lambda a: np.add.reduce(a, axis=None, keepdims=True), (2, 3)),
    own("multiply.reduce", np.multiply.reduce, (2, 3)),
    own("maximum.reduce", np.maximum.reduce, (2, 3), domain="apart"),
    own("minimum.reduce", lambda a: np.minimum.reduce(a, 1), (2, 3), domain="apart"),
    own("add.accumulate", np.add.accumulate, (2, 3)),
    own("multiply.accumulate", lambda a: np.multiply.accumulate(a, axis=1), (2, 3)),
]

EVERY = {"all": {}, "axis": {"axis": 1}, "keepdims": {"axis": (0, 1), "keepdims": True}}
NAN_REDUCTIONS = ["nansum", "nanprod", "nanmean", "nanvar", "nanstd", "nanmax", "nanmin"]

STATISTICS = [
    *(
        own(f"{name}#{key}", called(name, options), (2, 3), domain="apart")
        for name, more in {
            "sum": {"initial": {"initial": 2.0}, "where": {"where": MASK}, "dtype": {"dtype": np.float64}},
            "prod": {"initial": {"initial": 2.0}, "where": {"where": MASK, "axis": 0}},
            "mean": {"where": {"where": MASK, "axis": 1}, "dtype": {"dtype": "f8"}},
            "max": {"initial": {"initial": 0.3}, "where": {"where": MASK, "initial": -9.0, "axis": 1}},
            "min": {"initial": {"initial": 0.3}, "where": {"where": MASK, "initial": 9.0, "axis": 1}},
            "var": {"ddof": {"ddof": 1}, "where": {"where": MASK, "axis": 1}, "correction": {"correction": 1}},
            "std": {"ddof": {"ddof": 1}, "where": {"where": MASK, "axis": None, "ddof": 1}, "dtype": {"dtype": float}},
            "ptp": {},
            "median": {},
        }.items()
        for key, options in (EVERY | more).items()
    ),
    own("median#even", lambda a: np.median(a, axis=0), (4, 3), domain="apart"),
    own("median#axes", lambda a: np.median(a, axis=(0, 2)), (2, 3, 2), domain="apart"),
    own("quantile", lambda a: np.quantile(a, [0.1, 0.5, 0.93], axis=1), (2, 5), domain="apart"),
    own("quantile#ends", lambda a: np.quantile(a, [0.0, 1.0]), (2, 3), domain="apart"),
    own("quantile#q", lambda a, q: np.quantile(a, 0.31 + 0 * q), (5,), (), domain="apart"),
    own("quantile#keepdims", lambda a: np.quantile(a, 0.3, axis=0, keepdims=True), (4, 3), domain="apart"),
    own("percentile", lambda a: np.percentile(a, [30, 70]), (7,), domain="apart"),
    own("average", lambda a: np.average(a, axis=0), (3, 2)),
    own("average#weights", lambda a, w: np.average(a, weights=w * w), (3, 2), (3, 2)),
    own("average#axis", lambda a, w: np.average(a, axis=1, weights=w * w, returned=True), (2, 3), (3,)),
    *(
        own(f"{name}#{options}", with_holes(called(name, options)), (2, 3), domain="apart")
        for name in NAN_REDUCTIONS
        for options in [{}, {"axis": 1, "keepdims": True}]
    ),
    own("nanvar#ddof", lambda a: np.nanvar(np.where(HOLES, NAN, a), ddof=1), (2, 3)),
    own("cumsum", np.cumsum, (2, 3)),
    own("cumsum#axis", lambda a: np.cumsum(a, axis=-1), (2, 3)),
    own("cumprod", np.cumprod, (2, 3)),
    own("cumprod#axis", lambda a: np.cumprod(a, 1), (2, 3)),
    own("sort", np.sort, (2, 4), domain="apart"),
    own("sort#flat", lambda a: np.sort(a, axis=None, kind="stable"), (2, 4), domain="apart"),
    own("sort#axis", lambda a: np.sort(a, 0), (2, 4), domain="apart"),
    own("partition", lambda a: np.partition(a, 2), (6,), domain="apart"),
    own("partition#axis", lambda a: np.partition(a, (1, 3), axis=0), (5, 2), domain="apart"),
    own("average#axes", lambda a, w: np.average(a, axis=(2, 0), weights=w), (2, 3, 4), (4, 2), domain="positive"),
    own("average#counts", lambda a: np.average(a, axis=0, weights=[1, 3], returned=True), (2, 3)),
    own("mean#listed", lambda a: np.mean(a, axis=1, where=[True, False, True]), (2, 3)),
    own("std#listed", lambda a: np.std(a, axis=1, where=[True, False, True]), (2, 3)),
    own("max#listed", lambda a: np.max(a, where=[True, False, True], initial=-9.0), (2, 3), domain="apart"),
    own("meshgrid", lambda a, b: np.meshgrid(a, b), (2,), (3,)),
    own("meshgrid#sparse", lambda a, b: np.meshgrid(a, b, 1.0, sparse=True, copy=False), (2,), (3,)),
    own("meshgrid#ij", lambda a, b: np.meshgrid(a, b, sparse=True, indexing="ij"), (2,), (3,)),
    own("vander#none", lambda a: [np.vander(a, 0), a], (3,)),
    own("cov#both", lambda m, y: np.cov(m, y), (2, 4), (4,)),
    own("cov#rows", lambda m, y: np.cov(m, y), (4,), (2, 4)),
    own("cov", np.cov, (3, 5)),
    own("cov#two", lambda a, b: np.cov(a, b, bias=True), (4,), (4,)),
    own("cov#columns", lambda a: np.cov(a, rowvar=False, ddof=0), (5, 2)),
    own("cov#one", np.cov, (5,)),
    own("corrcoef", np.corrcoef, (3, 5)),
    own("corrcoef#vector", lambda x: np.corrcoef(x) * np.sum(x), (5,)),
    own("compress", lambda a: np.compress([True, False, True], a, axis=1), (2, 3)),
    own("compress#flat", lambda a: np.compress([0, 1, 1, 0], a), (2, 3)),
    own("take", lambda a: np.take(a, [5, 0, 0]), (2, 3)),
    own("take#matrix", lambda a: np.take(a, [[0, 1], [2, 2]], axis=1), (2, 3)),
    own("take#number", lambda a: np.take(a, 1, axis=0), (2, 3)),
]  # fmt: skip

DIFFERENCES = [
    own("diff", lambda a: np.diff(a, 2, 0), (4, 2)),
    own("diff#ends", lambda a: np.diff(a, prepend=0.0, append=a[:, :1]), (2, 3)),
    own("ediff1d", lambda a: np.ediff1d(a, to_end=[1.0, 2.0], to_begin=0.0), (2, 3)),
    own("ediff1d#plain", np.ediff1d, (4,)),
    own("gradient", np.gradient, (5,)),
    own("gradient#axes", np.gradient, (3, 4)),
    own("gradient#spacing", lambda a: np.gradient(a, 0.5), (4,)),
    own("gradient#spacings", lambda a, h: np.gradient(a, h, UNEVEN, edge_order=2), (4, 5), (), domain="positive"),
    own("gradient#axis", lambda a: np.gradient(a, axis=-1), (2, 4)),
    own("gradient#second", lambda a: np.gradient(a, 2.0, edge_order=2), (5,)),
    own("gradient#uneven", lambda a, x: np.gradient(a, np.cumsum(x)), (5,), (5,), domain="positive"),
    own("gradient#tuple", lambda a: np.gradient(a, axis=(0, -1)), (3, 2, 4)),
    own("trapezoid", np.trapezoid, (4,)),
    own("trapezoid#x", lambda y, x: np.trapezoid(y, x, axis=0), (4, 2), (4,)),
    own("trapezoid#matrix", lambda y, x: np.trapezoid(y, x), (2, 4), (2, 4)),
    own("trapezoid#dx", lambda y: np.trapezoid(y, dx=0.5), (2, 4)),
    own("interp", lambda x, f: np.interp(x, UNEVEN, f), (6,), (5,)),
    own("interp#nodes", lambda x, p, f: np.interp(x + 1.0, np.cumsum(p), f), (2, 3), (5,), (5,), domain="positive"),
    own("interp#ends", lambda x: np.interp(3 * x, [-1.0, 1.0], [1.0, 3.0], left=-2.0, right=9.0), (6,)),
    own("interp#period", lambda x, f: np.interp(3 * x, [0.0, 2.5, 1.0], f, period=4.0), (6,), (3,)),
    own("interp#one", lambda x, f: np.interp(x, [0.5], f), (3,), (1,)),
    own("interp#number", lambda x: np.interp(x, [-9.0, 0.0, 9.0], [0.0, 1.0, 3.0]), ()),
    own("linspace", lambda a, b: np.linspace(a, b, 5), (), ()),
    own("linspace#arrays", lambda a, b: np.linspace(a, b, num=3, axis=1), (2,), (3, 1)),
    own("linspace#open", lambda a: np.linspace(a, 1.0, 4, endpoint=False), (2,)),
    own("linspace#step", lambda a: np.linspace(0.0, a, 4, retstep=True), ()),
    own("linspace#one", lambda a: np.linspace(a, 1.0, 1), ()),
    own("logspace", lambda a, b: np.logspace(a, b, 3), (), ()),
    own("logspace#base", lambda a: np.logspace(a, 1.0, 3, base=2.0), (2,)),
]

MISSING = [
    Case("masked", lambda xp, a: xp.masked(a * a, MASK, 0.5), ((2, 3),)),
    Case("masked#fill", lambda xp, a, b: xp.masked(a, MASK[0], b * b), ((2, 3), (1, 3))),
    *(
        own(f"{name}#{options}", with_holes(called(name, options)), (2, 3), domain="apart")
        for name in ["nancumsum", "nancumprod", "nanmedian"]
        for options in [{}, {"axis": 1}]
    ),
    own("nanmedian#keepdims", with_holes(called("nanmedian", {"axis": 0, "keepdims": True})), (2, 3), domain="apart"),
    own("nanmedian#axes", lambda a: np.nanmedian(np.where(HOLES, NAN, a), axis=(0, 2)), (4, 2, 3), domain="apart"),
    own("nanquantile", with_holes(lambda a: np.nanquantile(a, [0.2, 0.7], axis=1)), (2, 3), domain="apart"),
    own("nanquantile#all", with_holes(lambda a: np.nanquantile(a, 0.41, keepdims=True)), (2, 3), domain="apart"),
    own("nanpercentile", with_holes(lambda a: np.nanpercentile(a, 30, axis=0)), (2, 3), domain="apart"),
]

SELECTION = [
    own("take#wrap", lambda a: np.take(a, [4, -1, 7], mode="wrap"), (3,)),
    own("take#clip", lambda a: np.take(a, [[4], [-1]], axis=1, mode="clip"), (2, 3)),
    own("choose", lambda a, b: np.choose([1, 0, 1], [a, b]), (3,), (2, 3)),
    own("choose#wrap", lambda a, b: np.choose([1, 2, 3], [a, b, 1.0], mode="wrap"), (3,), (3,)),
    own("extract", lambda a: np.extract([[True, False, True], [False, True, True]], a), (2, 3)),
    own("trim_zeros", lambda a: np.trim_zeros(np.concatenate([[0.0, 0.0], a, [0.0]])), (3,)),
    own("trim_zeros#front", lambda a: np.trim_zeros(np.concatenate([[0.0, 0.0], a, [0.0]]), "f"), (3,)),
    own("resize", lambda a: np.resize(a, (2, 4)), (3,)),
    own("resize#number", lambda a: np.resize(a, 2), (2, 3)),
    own("bincount#lengths", lambda w: np.bincount([0, 2, 2, 1], weights=w), (4,)),
    own("bincount", lambda w: np.bincount([0, 2, 2, 1], weights=w, minlength=5), (4,)),
    own("unique", lambda a: np.unique(np.concatenate([a, a[:2]])), (4,), domain="apart"),
    own("unique#inverse", lambda a: np.unique(a, return_inverse=True, return_counts=True)[0], (2, 3), domain="apart"),
    own("unique#axis", lambda a: np.unique(a, axis=1), (2, 3), domain="apart"),
    own("union1d", lambda a, b: np.union1d(a, np.concatenate([b + 0.05, a[:2]])), (3,), (2,), domain="apart"),
    own("intersect1d", lambda a: np.intersect1d(a[[2, 0, 1, 1]], a[1:]), (4,), domain="apart"),
    own("setdiff1d", lambda a: np.setdiff1d(a[[2, 0, 1, 1]], a[1:2]), (4,), domain="apart"),
    own("setxor1d", lambda a: np.setxor1d(a[:3], a[1:]), (4,), domain="apart"),
]

POLYNOMIALS = [
    own("vander", np.vander, (3,)),
    own("vander#increasing", lambda x: np.vander(x, 4, increasing=True), (3,)),
    own("poly", np.poly, (3,)),
    own("poly#matrix", np.poly, (3, 3), domain="spread"),
    own("polyadd", np.polyadd, (2,), (4,)),
    own("polysub", np.polysub, (2,), (4,)),
    own("polymul", np.polymul, (2,), (3,)),
    own("polyder", np.polyder, (4,)),
    own("polyder#twice", lambda p: np.polyder(p, 2), (4,)),
    own("polyint", np.polyint, (3,)),
    own("polyint#twice", lambda p, k: np.polyint(p, 2, k), (3,), (2,)),
    own("polyint#one constant", lambda p, k: np.polyint(p, 2, k), (3,), (1,)),
    own("polyfit", lambda y: np.polyfit(UNEVEN, y, 2), (5,)),
    own("polyfit#points", lambda x, y: np.polyfit(np.cumsum(x), y, 1), (4,), (4,), domain="positive"),
    own("polyfit#weights", lambda y, w: np.polyfit(UNEVEN, y, 1, w=w), (5, 2), (5,), domain="positive"),
    own("roots", lambda x: np.sort(np.real(np.roots(np.poly(np.cumsum(x))))), (3,), domain="positive"),
    own("roots#zeros", lambda p: np.abs(np.roots(np.concatenate([[0.0], p * p, [0.0, 0.0]]))), (2,), domain="above"),
]

NUMBERS = [
    own("divmod", lambda a, b: np.divmod(a, b)[1], (3, 1), (2,), domain="above"),
    own("divmod#operator", lambda a: divmod(a, 0.7)[1] * a + divmod(0.7, a)[1], (3,), domain="above"),
    own("modf", lambda a: np.modf(a)[0] * a, (3,)),
    own("ldexp", lambda a: np.ldexp(a, [1, -2, 0]), (3,)),
    own("unwrap", lambda a: np.unwrap(7.0 * a) ** 3, (6,)),
    own("unwrap#period", lambda a: np.unwrap(7.0 * a, period=3.0, axis=0) ** 2, (4, 2)),
    own("geomspace", lambda a, b: np.geomspace(a, b, 4), (), (), domain="positive"),
    own("geomspace#arrays", lambda a: np.geomspace(-a, -2.0, 3, axis=1), (2,), domain="positive"),
]

SCANS = [
    *(
        own(f"{name}.{method}#{n}", lambda a, name=name, method=method: getattr(getattr(np, name), method)(a), (n, 2),
            domain="apart")
        for name in ["maximum", "minimum", "fmax", "fmin", "logaddexp", "logaddexp2", "hypot"]
        for method in ["accumulate", "reduce"]
        if (name, method) not in {("maximum", "reduce"), ("minimum", "reduce")}
        for n in [1, 5]
    ),
    own("logaddexp.accumulate#axis", lambda a: np.logaddexp.accumulate(a, axis=1), (2, 5)),
    own("logaddexp.reduce#all", lambda a: np.logaddexp.reduce(a, axis=None, keepdims=True), (2, 3)),
    own("logaddexp.reduce#axes", lambda a: np.logaddexp.reduce(a, axis=(2, 0)), (2, 3, 2)),
    own("hypot.reduce#axes", lambda a: np.hypot.reduce(a, axis=(0, -1), keepdims=True), (2, 3, 2)),
    own("add.reduce#where", lambda a: np.add.reduce(a, where=MASK, initial=2.0), (2, 3)),
    own("maximum.reduce#where", lambda a: np.maximum.reduce(a, 1, where=MASK, initial=-9.0), (2, 3), domain="apart"),
    own("logaddexp.reduce#keepdims", lambda a: np.logaddexp.reduce(a, axis=1, keepdims=True), (2, 3)),
]  # fmt: skip

CASES = [
    *(*EINSUM, *PRODUCTS, *DIAGONALS, *JOINING, *SHAPES, *ELEMENTWISE, *STATISTICS, *DIFFERENCES),
    *(*MISSING, *SELECTION, *POLYNOMIALS, *NUMBERS, *SCANS),
]


def test_every_function_has_a_case():
    covered = {case.name.partition("#")[0] for case in CASES}
    assert covered == {n for n in NUMPY if hasattr(np, n.partition(".")[0])} | set(NUMPY_RULES)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", named(CASES))
def test_function(case, order):
    check(case, np, order)


@pytest.mark.parametrize(
    ("name", "position"),
    [
        pytest.param(name, i, id=f"{name}-{i}")
        for name, rule in NUMPY_RULES.items()
        for i, formula in enumerate(rule.formulas or (rule.each,) * 2)
        if formula is not None
    ],
)
def test_the_cases_bite(name, position, monkeypatch):
    """A formula that is wrong by one in a hundred thousand fails a case of its rule."""
    assert failures_of_a_wrong_formula(name, position, CASES, monkeypatch)


@pytest.mark.parametrize("case", named(CASES))
def test_forward_mode(case):
    rng = np.random.default_rng(7)
    args = case.arguments(np, rng)
    f = case.function(namespace(args[0]))
    tangents = tuple(np.asarray(rng.normal(size=x.shape)) for x in args)
    y, dy = dil.jvp(f, args, tangents)
    cotangents = tuple(np.asarray(rng.normal(size=part.shape)) for part in y)
    forward = [v * d for v, d in zip(cotangents, dy, strict=True)]
    backward = [g * t for g, t in zip(vjp(f, *args)[1](cotangents), tangents, strict=True)]
    size = sum(total(abs(x)) for x in forward + backward)
    assert abs(sum(map(total, forward)) - sum(map(total, backward))) <= 1e-12 * size


METHODS_CASES = {
    "all": lambda u: u * u.all(),
    "any": lambda u: u * u.any(axis=0),
    "argmax": lambda u: u[u.argmax(axis=0)[0]],
    "argmin": lambda u: u[u.argmin(0)[0]],
    "argpartition": lambda u: u[u.argpartition(1, axis=0)[0, 0]],
    "argsort": lambda u: u[0][u.argsort()[0]],
    "astype": lambda u: u.astype(float) + u.astype("f8", copy=False),
    "clip": lambda u: u.clip(-0.5, 0.5) + u.clip(max=0.1),
    "compress": lambda u: u.compress([False, True], axis=0),
    "conj": lambda u: u.conj(),
    "conjugate": lambda u: u.conjugate(),
    "copy": lambda u: u.copy() * u.copy(order="C"),
    "cumprod": lambda u: u.cumprod() + u.cumprod(axis=1).ravel(),
    "cumsum": lambda u: u.cumsum() + u.cumsum(0).ravel(),
    "diagonal": lambda u: u.diagonal() + u.diagonal(offset=1),
    "dot": lambda u: u.dot(u.T) + u.dot(np.arange(6.0).reshape(3, 2)),
    "flat": lambda u: sum(u.flat) + u.flat[1:3],
    "flatten": lambda u: u.flatten() + u.flatten("F"),
    "max": lambda u: u.max() + u.max(axis=0) + u.max(1, keepdims=True),
    "mean": lambda u: u.mean() + u.mean(0) + u.mean(axis=1, keepdims=True),
    "min": lambda u: u.min() + u.min(axis=0) + u.min(initial=0.0),
    "nonzero": lambda u: u[u.nonzero()],
    "prod": lambda u: u.prod() + u.prod(axis=0),
    "ravel": lambda u: u.ravel() + u.ravel("F"),
    "repeat": lambda u: u.repeat(2) + u.repeat([2, 2], axis=0).ravel(),
    "reshape": lambda u: u.reshape(3, 2) + u.reshape((3, -1)) + u.reshape(3, 2, order="F") + u.reshape(-1)[0],
    "round": lambda u: u * u.round(1),
    "searchsorted": lambda u: u[0] * u[0].searchsorted(0.3),
    "squeeze": lambda u: u[None].squeeze() + u[None].squeeze(axis=0),
    "std": lambda u: u.std() + u.std(axis=0, ddof=1),
    "sum": lambda u: u.sum() + u.sum(1)[:, None] + u.sum(axis=0, keepdims=True) + u.sum(where=MASK),
    "swapaxes": lambda u: u.swapaxes(0, 1),
    "take": lambda u: u.take([0, 5, 0]) + u.take([1, 1, 2], axis=1)[0],
    "to_device": lambda u: u.to_device("cpu") * 2.0,
    "trace": lambda u: u.trace() + u.trace(offset=1),
    "transpose": lambda u: u.transpose() + u.transpose(1, 0) + u.transpose((1, 0)) + u.transpose(None),
    "var": lambda u: u.var() + u.var(1, ddof=1)[0],
    "real": lambda u: u.real * u,
    "imag": lambda u: u.imag + u,
    "itemsize": lambda u: u * u.itemsize,
    "nbytes": lambda u: u * u.nbytes,
}


def test_every_method_has_a_case():
    assert set(METHODS_CASES) == set(METHODS) | set(ATTRIBUTES)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", METHODS_CASES)
def test_method(name, order):
    check(own(name, METHODS_CASES[name], (2, 3), domain="apart"), np, order)


def test_methods_of_numbers():
    def f(x):
        return (x.reshape(1, 1) + x.ravel() * x.sum() - x.mean() * x.T + x.copy().squeeze(),)

    assert_transposed(f, (np.asarray(0.7),), np.random.default_rng(0))


ARRAY_API = ["shape", "dtype", "ndim", "size", "device", "T", "mT"]


def test_every_attribute_of_an_array_is_known():
    """What NumPy's arrays have and a box has not, and is not refused with what to write instead."""
    known = {*METHODS, *ATTRIBUTES, *INSTEAD, *ARRAY_API}
    public = {name for name in dir(np.ndarray) if not name.startswith("_")}
    assert public - known == {"base", "byteswap", "choose", "flags", "setfield", "setflags", "strides"}
    assert known <= public


@pytest.mark.parametrize("name", INSTEAD)
def test_methods_that_cut_say_what_to_write(name):
    text = f"`{name}` of an array.*would cut the derivative; (write|keep).*constant"
    with pytest.raises(UnsupportedFunctionError, match=text):
        vjp(lambda u: (getattr(u, name)(),), np.ones(3))


def test_strict_arrays_have_no_methods_of_numpy():
    def f(x):
        assert not any(hasattr(x, name) for name in [*METHODS, *INSTEAD, "real"] if name != "to_device")
        x = x.to_device(x.device)  # the standard's
        tape = x.__array_namespace__()
        assert not any(hasattr(tape, name) for name in [*NUMPY_ALIASES, "einsum", "exp2", "ravel", "hstack", "pad"])
        with pytest.raises(AttributeError, match="no attribute `reshape`"):
            x.reshape(3)
        return (x,)

    vjp(f, array_api_strict.ones(3))


def test_the_namespace_of_a_box_has_functions_of_numpy():
    x = np.arange(3.0)

    def f(u):
        xp = u.__array_namespace__()
        assert type(xp.einsum("i,i->", x, x)) is np.float64  # raw arrays need no tape
        return (xp.einsum("i,i->", u, x) + xp.trace(xp.diag(u)) + xp.hstack([u, x])[0] + xp.exp2(u)[1],)

    assert_transposed(lambda u: f(u) if is_box(u) else vjp(f, u)[0], (x,), np.random.default_rng(0))


def test_boxes_survive_copies():
    (y,), pull = vjp(lambda u: (copy.deepcopy(u) * copy.copy(u),), np.asarray(3.0))
    assert (y, pull((np.asarray(1.0),))[0]) == (9.0, 6.0)


def test_lists_and_numbers_beside_boxes():
    def f(u):
        return (
            u * [1.0, 2.0, 3.0] + [1.0, 0.0, 1.0] - np.maximum(u, [0.1, 0.2, 0.3]),
            np.concatenate([u, [1.0], [u[0], 2.0]]) + np.hstack([u, 1.0, [u[1] * u[2], 0.0]]),
            np.dot([1.0, 2.0, 3.0], u) * np.inner(u, [1.0, 2.0, 3.0]),
        )

    x = np.asarray([0.5, 1.5, -0.7])
    assert_transposed(lambda u: f(u) if is_box(u) else vjp(f, u)[0], (x,), np.random.default_rng(0))


def pulled(f, *args):
    """The gradients of the sum of f."""
    y, pull = vjp(lambda *xs: (f(*xs),), *map(np.asarray, args))
    return pull((np.ones(y[0].shape),))


def test_ties_share_equally():
    for name in ["fmax", "fmin"]:
        for g in pulled(getattr(np, name), [1.0, 2.0], [1.0, 2.0]):
            np.testing.assert_array_equal(g, 0.5)


def test_nan_gets_no_gradient():
    a, b = pulled(np.fmax, [1.0, NAN, 3.0], [2.0, 5.0, NAN])
    np.testing.assert_array_equal([a, b], [[0, 0, 1], [1, 1, 0]])
    (g,) = pulled(lambda x: np.nan_to_num(x, nan=7.0, posinf=8.0), [1.0, NAN, math.inf, -math.inf])
    np.testing.assert_array_equal(g, [1, 0, 0, 0])
    y = vjp(lambda x: (np.median(x), np.nanmax(x[1:2]), np.nanmin(x[1:2])), np.asarray([1.0, NAN, 2.0]))[0]
    np.testing.assert_array_equal(y, NAN)


@pytest.mark.parametrize("x", [0.0, 1e-300, 1e-9, 1e-4, 0.05, 0.3, 1 / math.pi, 0.33, 1.0, 7.3])
def test_sinc_keeps_its_digits(x):
    """Against the derivatives of the integral of cos(pi x t) over t in (0, 1), of which Gauss's rule has all digits."""
    t, w = np.polynomial.legendre.leggauss(60)
    t, w = 0.5 * (t + 1.0), 0.5 * w
    first = -np.sum(w * math.pi * t * np.sin(math.pi * t * x))
    second = -np.sum(w * (math.pi * t) ** 2 * np.cos(math.pi * t * x))
    f = gradient(lambda x: (np.sinc(x),), 1)
    (g,), pull = vjp(lambda x: f(x, np.asarray(1.0)), np.asarray(x))
    (h,) = pull((np.asarray(1.0),))
    assert abs(g - first) <= 1e-13 * max(abs(first), abs(x))
    assert abs(h - second) <= 1e-12 * math.pi**2 / max(1.0, x * x)


def test_diagonals_of_einsum_and_long_contractions():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 40)), rng.normal(size=(40, 40))  # longer than a plain loop is good for
    check_equal = np.testing.assert_allclose
    (da, db) = pulled(lambda a, b: np.einsum("ij,jk->ik", a, b), a, b)
    check_equal(da, np.ones((40, 40)) @ b.T, rtol=1e-12, atol=1e-12 * np.max(abs(b)) * 40)
    check_equal(db, a.T @ np.ones((40, 40)), rtol=1e-12, atol=1e-12 * np.max(abs(a)) * 40)


BAD_EINSUMS = {
    "does not fit": ("ij->i", (3,)),
    "do not|terms": ("ij,k->i", (3, 3)),
    "must have the ellipsis": ("...i->i", (2, 3)),
    "lengths 2 and 3": ("ii", (2, 3)),
    "must be different ones": ("i->ii", (3,)),
    "must be different ones ": ("i->j", (3,)),
}


@pytest.mark.parametrize("text", BAD_EINSUMS)
def test_einsum_says_what_is_wrong(text):
    subscripts, shape = BAD_EINSUMS[text]
    with pytest.raises(ValueError, match=text.strip()):
        vjp(lambda x: (np.einsum(subscripts, x),), np.ones(shape))
    with pytest.raises(ValueError, match="lengths 2 and 3"):
        vjp(lambda x: (np.einsum("i,i->", x, np.ones(3)),), np.ones(2))


def test_too_few_samples_for_a_slope():
    with pytest.raises(ValueError, match="2 samples along an axis are too few for edge_order=2"):
        vjp(lambda f: (np.gradient(f, edge_order=2),), np.ones(2))


REFUSED = {
    r"pad\(mode='mean'\)": lambda u: np.pad(u, 1, "mean"),
    r"pad\(mode='reflect', reflect_type='odd'\)": lambda u: np.pad(u, 1, "reflect", reflect_type="odd"),
    r"quantile\(method='nearest'\)": lambda u: np.quantile(u, 0.3, method="nearest"),
    r"reshape\(order='A'\)": lambda u: np.reshape(u, (3,), order="A"),
    "cross of anything but vectors of three entries": lambda u: np.cross(u[:2], u[:2]),
    "`einsum` was called with dtype=": lambda u: np.einsum("i->", u, dtype=float),
    "`cov` was called with fweights=": lambda u: np.cov(u, fweights=[1, 1, 1]),
    "`sum` was called with out=": lambda u: np.sum(u, 0, None, np.zeros(())),
    r"sum\(out=...\)": lambda u: u.sum(out=np.zeros(())),
    "`copyto`; it writes in place; make a new array by": lambda u: np.copyto(np.zeros(3), u),
    r"`clip` was called with 4 positional arguments.*in place": lambda u: np.clip(u, 0.0, 1.0, np.zeros(3)),
    r"`dot` was called with 3 positional arguments.*in place": lambda u: np.dot(np.eye(3), u, np.zeros(3)),
    r"`exp` was called with where=.*np\.where\(mask": lambda u: np.exp(u, where=u > 0.0),
    r"divide\(out=...\)`.*np\.where\(mask": lambda u: np.divide(u, u, out=np.zeros(3), where=u != 0.0),
    r"`histogram`.*np\.bincount": lambda u: np.histogram(np.arange(3.0), 2, weights=u),
    "`put`; it writes in place": lambda u: np.put(u, [0], 1.0),
    "`fill_diagonal`; it writes in place": lambda u: np.fill_diagonal(u, 1.0),
    "`piecewise`; write `np.where`": lambda u: np.piecewise(u, [u > 0], [1.0]),
    "`apply_along_axis`; write the function with axis=": lambda u: np.apply_along_axis(np.sum, 0, u),
    "polydiv": lambda u: np.polydiv(u, u[:2]),
    "`histogram`; its counts are piecewise constant": np.histogram,
    "`frexp`; write `np.log2`": np.frexp,
    "`add.reduceat`; write the reductions of the slices": lambda u: np.add.reduceat(u, [0, 2]),
    "`subtract.reduce`; write the operator": np.subtract.reduce,
    "`add.at`; it writes in place": lambda u: np.add.at(u, [0], 1.0),
    r"nanquantile\(method='nearest'\)": lambda u: np.nanquantile(u, 0.3, method="nearest"),
    "lstsq of np.vander": lambda u: np.polyfit(u, u, 1, full=True),
    r"ravel\(order='K'\)`; write order=": lambda u: u[None].T.ravel("K"),
    r"ravel\(order='A'\)`; write order=": lambda u: u[None].T.flatten("A"),
    "insert of an array of int64 with values of float64`; write `astype": lambda u: np.insert(np.arange(3), 1, u[0]),
    "insert of an array of float64 with values of complex128": lambda u: np.insert(u, 1, 2j),
    "ediff1d of an array of float64 with values of complex128": lambda u: np.ediff1d(u, to_end=2j),
    "nan_to_num of complex numbers by": lambda u: np.nan_to_num(u + 1j, posinf=math.inf),
    r"float\(\) of an array.*np\.stack.*np\.exp for math\.exp": lambda u: u * math.exp(u[0]),
    **{
        rf"scimath\.{name}`; write `np\.{'log' if name == 'logn' else name}`": partial(getattr(np.emath, name), *base)
        for name in ("sqrt", "log", "log2", "log10", "power", "logn", "arccos", "arcsin", "arctanh")
        for base in [(2.0,) if name in ("power", "logn") else ()]
    },
    "sliding_window_view`": lambda u: np.lib.stride_tricks.sliding_window_view(u, 2),
}


@pytest.mark.parametrize("text", REFUSED)
def test_refusals_say_what_to_write(text):
    with pytest.raises(UnsupportedFunctionError, match=text):
        vjp(lambda u: (REFUSED[text](u),), np.ones(3))


def test_a_number_is_an_array_of_numpy():
    def cube(x):
        return x**3

    assert dil.grad(cube)(2.0) == 12.0
    assert dil.value_and_grad(cube)(2.0) == (8.0, 12.0)
    assert dil.grad(dil.grad(cube))(2.0) == 12.0
    assert dil.jvp(cube, (2.0,), (1.0,)) == dil.jvp(cube, (2.0,), (1,)) == (8.0, 12.0)
    assert dil.jvp(cube, (np.asarray(2.0),), (0.5,)) == (8.0, 6.0)
    out, pull = dil.vjp(cube, 2.0)
    assert (out, pull(1.0), pull(2)) == (8.0, (12.0,), (24.0,))
    assert dil.grad(lambda p: p["a"] * p["b"] ** 2)({"a": 2.0, "b": 3.0}) == {"a": 9.0, "b": 12.0}
    assert dil.grad(lambda x, n: x**n)(2.0, 3) == 12.0  # an integer stays one
    assert dil.grad(lambda z: np.abs(z) ** 2)(1.0 + 2.0j) == 2.0 + 4.0j


def test_a_number_as_the_argument_of_a_layer():
    layer = dil.argmin(lambda u, t: np.sum((u - t) ** 2), dil.solvers.Newton(), init=lambda t: np.zeros(2))
    np.testing.assert_allclose(layer(2.0), 2.0, rtol=1e-12)
    assert abs(dil.grad(lambda t: np.sum(layer(t)))(2.0) - 2.0) <= 1e-12
    np.testing.assert_allclose(layer(t=2.0), 2.0, rtol=1e-12)


def test_a_number_beside_an_array_is_a_constant():
    seen = []
    dil.grad(lambda x, n: seen.append(n) or np.sum(x) * n)(np.ones(2), 2.0)
    assert type(seen[0]) is float


@pytest.mark.parametrize("number", [2, True, [1.0, 2.0], (1.0, 2.0), "2.0", None], ids=str)
def test_what_is_no_number_is_refused(number):
    with pytest.raises(dil.DTypeError, match=r"holds no floating array.*a float such as 2\.0"):
        dil.grad(np.sum)(number)
    with pytest.raises(dil.BackendError, match="got no array"):
        dil.vjp(np.sum, number)


def test_a_number_is_no_tangent_of_a_vector():
    with pytest.raises(dil.ShapeError, match=r"a tangent is 1.0 of type float; expected an array of shape \(2,\)"):
        dil.jvp(np.sum, (np.ones(2),), (1.0,))
    with pytest.raises(dil.ShapeError, match=r"a cotangent is 1.0 of type float; expected an array of shape \(2,\)"):
        dil.vjp(lambda x: x, np.ones(2))[1](1.0)
    with pytest.raises(dil.DTypeError, match="a tangent is given for 3 of type int"):
        dil.jvp(lambda x, n: x**n, (2.0, 3), (1.0, 1.0))


@pytest.mark.parametrize("case", named(CASES))
def test_single_precision_has_the_dtype_of_numpy(case):
    args = tuple(x.astype(np.float32) for x in case.arguments(np, np.random.default_rng(len(case.name))))
    f = case.function(namespace(args[0]))
    boxed, pull = vjp(f, *args)
    for found, raw in zip(boxed, f(*args), strict=True):
        assert found.dtype == raw.dtype
        np.testing.assert_allclose(found, raw, rtol=1e-3, atol=1e-4)
    assert all(g.dtype == np.float32 for g in pull(tuple(map(np.ones_like, boxed))))


def of_complex(name, f, *shapes):
    return Case(name, lambda xp, *args: f(*args), shapes, numbers=("complex",))


COMPLEX = [
    *(
        of_complex(f"{name}#where {options}", called(name, {"where": MASK, **options}), (2, 3))
        for name in ["var", "std"]
        for options in [{}, {"axis": 1, "ddof": 0.5, "keepdims": True}]
    ),
    *(
        of_complex(f"{name}#{options}", with_holes(called(name, options)), (2, 3))
        for name in ["nanvar", "nanstd", "nanmean", "nansum"]
        for options in [{}, {"axis": 1}]
    ),
    *([of_complex("vecmat", np.vecmat, (2, 3), (3, 4))] if hasattr(np, "vecmat") else []),
    of_complex("float_power", lambda a: np.float_power(a, 2), (3,)),
    of_complex("float_power#exponent", lambda a: np.float_power(2.0, a), (3,)),
    of_complex("nan_to_num", np.nan_to_num, (3,)),
    of_complex("linspace", lambda a: np.linspace(a, 1.0, 4), (2,)),
    of_complex("select", lambda a: np.select([np.asarray([True, False])], [a], 2.0), (2,)),
    of_complex("cov", np.cov, (2, 4)),
]


@pytest.mark.parametrize("case", named(COMPLEX))
@pytest.mark.parametrize("order", [1, 2])
def test_complex_numbers(case, order):
    check(case, np, order)


def test_parts_that_are_nan_or_infinite_are_replaced_apart():
    z = np.asarray([complex(NAN, 1), complex(2, NAN), complex(math.inf, 3), complex(4, -math.inf)])
    (y,), pull = vjp(lambda z: (np.nan_to_num(z, nan=7.0),), z)
    np.testing.assert_array_equal(y, np.nan_to_num(z, nan=7.0))
    np.testing.assert_array_equal(pull((np.full(4, 1 + 1j),))[0], [1j, 1, 1j, 1])


@pytest.mark.parametrize("f", [np.nanstd, lambda u: np.std(u, where=np.asarray([True, True, False])), np.std])
def test_the_deviation_of_equal_entries_has_the_gradient_zero(f):
    np.testing.assert_array_equal(pulled(f, [2.0, 2.0, 2.0])[0], 0.0)


def test_complex_numbers_have_no_quantile():
    for f in (np.median, lambda z: np.quantile(z, 0.3), lambda z: np.percentile(z, 30)):
        with pytest.raises(TypeError, match="need real numbers"):
            vjp(lambda z: (f(z),), np.ones(3) + 1j)  # noqa: B023


def test_keywords_of_numpy():
    x = np.asarray([0.2, 0.7, 1.4])
    single = x.astype(np.float32)
    for f in (
        lambda u: np.interp(x=u, xp=[0.0, 1.0, 2.0], fp=[0.0, 3.0, 1.0]),
        lambda u: np.interp(0.3, xp=u, fp=u),
        lambda u: np.add.reduce(u, dtype=np.float64),
        lambda u: np.multiply.reduce(u, 0, np.float64),
        lambda u: np.maximum.reduce(u, dtype=np.float64),
        lambda u: np.add.accumulate(u, dtype=np.float64),
        lambda u: np.multiply.accumulate(u, 0, np.float64),
    ):
        (y,), pull = vjp(lambda u: (f(u),), single)  # noqa: B023
        assert y.dtype == np.asarray(f(single)).dtype == np.float64
        np.testing.assert_allclose(y, f(single), rtol=1e-15)
        assert pull((np.ones_like(y),))[0].dtype == np.float32


@pytest.mark.parametrize("ddof", [1, 2, 4])
@pytest.mark.parametrize("f", [np.nanvar, np.nanstd, partial(np.var, where=MASK), partial(np.std, where=MASK)])
def test_a_variance_without_a_degree_of_freedom_is_that_of_numpy(f, ddof):
    a = np.asarray([[1.0, NAN, NAN], [0.3, 0.9, 1.4]]) if f in (np.nanvar, np.nanstd) else np.asarray(UNEVEN[1:])
    a = a if a.ndim > 1 else np.stack([a[:3], a[1:]])
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of too few degrees of freedom
        (y,), _ = vjp(lambda u: (f(u, axis=1, ddof=ddof),), a)
        np.testing.assert_allclose(y, f(a, axis=1, ddof=ddof), rtol=1e-14)


def test_weights_of_another_shape_are_no_weights():
    with pytest.raises(ValueError, match=r"weights of shape \(2, 3\) do not fit"):
        dil.grad(lambda u: np.sum(np.average(u, axis=(1, 0), weights=np.ones((2, 3)))))(np.ones((2, 3, 4)))


def test_the_path_of_einsum_is_found_beside_boxes():
    def f(u):
        return np.einsum("ij,jk,k", u, u, u[0], optimize=np.einsum_path("ij,jk,k", u, u, u[0])[0]).sum()

    u = np.arange(9.0).reshape(3, 3)
    np.testing.assert_allclose(dil.grad(f)(u), dil.grad(lambda u: np.sum(u @ u @ u[0]))(u), rtol=1e-14)


IN_PLACE = ["iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"]


@pytest.mark.parametrize("name", IN_PLACE)
def test_arrays_take_no_augmented_assignment_and_numbers_do(name):
    change = getattr(operator, name)
    with pytest.raises(UnsupportedFunctionError, match=r"would not change the other names.*write `v = v .* x`"):
        vjp(lambda u: (change(u, u),), np.ones(3))
    if name != "imatmul":
        x = np.asarray(2.3)
        assert vjp(lambda u: (change(u, 0.7),), x)[0][0] == getattr(operator, name[1:])(x, 0.7)


def test_a_pullback_to_integers_alone_is_refused():
    with pytest.raises(dil.DTypeError, match=r"hold no floating array.*x\.astype\(float\)"):
        dil.vjp(lambda x: 1.0 * x, np.array([1, 0]))
    assert dil.vjp(lambda x, k: x * k, np.ones(2), np.array([1, 0]))[1](np.ones(2))[1] is None


def test_the_step_of_a_single_sample_is_nan():
    steps = []
    dil.grad(lambda u: [steps.append(np.linspace(u, 1.0, 1, retstep=True)[1]), u][1])(np.asarray(0.5))
    assert np.isnan(steps[0])
    assert np.isnan(np.linspace(0.5, 1.0, 1, retstep=True)[1])


def test_the_polynomial_of_a_real_matrix_is_real():
    """Its eigenvalues are complex."""
    dtypes = []

    def score(A):
        dtypes.append(np.poly(A).dtype)
        return np.sum(np.poly(A))

    found = dil.grad(score)(np.asarray([[0.3, -1.0], [1.0, 0.2]]))
    assert dtypes == [np.float64]
    np.testing.assert_allclose(found, [[0.2 - 1.0, -1.0], [1.0, 0.3 - 1.0]], rtol=1e-12)  # of 1 - trace + det


@pytest.mark.parametrize(("shape", "axis"), [((0,), None), ((2, 0), 1), ((2, 0), None), ((0, 2), (0, 1))])
def test_an_extremum_of_no_entry_is_its_initial_value(shape, axis):
    x = np.zeros(shape)
    for function in (np.max, np.min, np.maximum.reduce):
        f = lambda t, function=function: function(x * t, axis=axis, initial=2.0) * t  # noqa: E731
        t = np.asarray(3.0)
        np.testing.assert_array_equal(f(t), 6.0)
        np.testing.assert_array_equal(dil.jvp(f, (t,), (np.asarray(1.0),))[1], np.full_like(f(t), 2.0))
        with pytest.raises(ValueError, match="zero-size array"):
            dil.grad(lambda t, function=function: np.sum(function(x * t, axis=axis)))(t)
