"""Special functions on the tape: rules against finite differences, to second order, and tails against closed forms."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import dil
from dil._base.errors import UnsupportedFunctionError
from dil_backends._tape import namespace, vjp
from dil_backends._tape import primitive as _tape
from dil_backends._tape import rules as _tape_rules
from tape_helpers import assert_transposed, gradient

sp = pytest.importorskip("scipy.special", reason="SciPy is not installed")
pytestmark = pytest.mark.filterwarnings("error")

A = np.asarray
REAL = A([-2.3, -0.7, 0.4, 1.9])
SMALL = A([-0.9, -0.2, 0.0, 0.5])
POSITIVE = A([0.3, 0.8, 1.7, 4.0])
UNIT = A([0.1, 0.4, 0.8])
ROWS = A([[0.3, -1.2, 2.0], [0.1, 0.7, -0.4]])
WEIGHTS = A([[0.5, 1.5, -0.05], [2.0, 0.0, 1.0]])

CASES = {
    **{key: [(REAL,)] for key in ["expit", "log_expit", "erf", "erfc", "erfi", "ndtr", "exp10", "cosm1"]},
    **{key: [(REAL,), (SMALL,)] for key in ["exprel", "j0", "j1", "i0", "i1"]},
    **{key: [(REAL,), (A([9.5, 11.0, 40.0]),)] for key in ["erfcx", "dawsn"]},
    **{key: [(REAL,), (A([-0.9, 0.5]),)] for key in ["i0e", "i1e"]},
    **{key: [(POSITIVE,), (A([-0.4, -2.3]),)] for key in ["gammaln", "gamma", "psi"]},
    **{key: [(POSITIVE,)] for key in ["loggamma", "entr", "expi", "exp1", "y0", "y1", "k0", "k1", "k0e", "k1e"]},
    **{key: [(A([20.0, 130.0]),)] for key in ["sindg", "cosdg", "tandg", "cotdg"]},
    **{key: [(UNIT,)] for key in ["logit", "erfcinv", "ndtri"]},
    "rgamma": [(REAL,), (A([-3.0, -1.0, 0.0, 1.0]),)],
    "log_ndtr": [(REAL,), (A([-16.0, -13.0, 5.0]),)],
    "erfinv": [(A([-0.7, 0.2, 0.6]),)],
    "ndtri_exp": [(A([-30.0, -2.0, -0.3]),)],
    "softmax": [(ROWS,), (ROWS, 1), (ROWS, (0, 1))],
    "log_softmax": [(ROWS,), (ROWS, 0)],
    "zeta": [(2.5, POSITIVE)],
    "polygamma": [(1, POSITIVE), (A([0, 2]), A([0.7, 1.1]))],
    **{key: [(POSITIVE, 1.5), (1.5, POSITIVE), (POSITIVE, A([[0.6], [2.0]]))] for key in ["beta", "betaln", "poch"]},
    **{key: [(1.5, 2.5, UNIT), (A([0.6, 1.0, 3.0]), 0.7, UNIT)] for key in ["betainc", "betaincc", "betaincinv"]},
    **{key: [(1.5, POSITIVE), (0.7, POSITIVE)] for key in ["gammainc", "gammaincc"]},
    **{key: [(1.5, UNIT)] for key in ["gammaincinv", "gammainccinv"]},
    **{key: [(3.0, POSITIVE)] for key in ["chdtr", "chdtrc"]},
    "stdtr": [(3.0, REAL)],
    **{key: [(POSITIVE, POSITIVE[::-1]), (0.7, POSITIVE), (POSITIVE, 1.3)] for key in ["xlogy", "rel_entr", "kl_div"]},
    "xlog1py": [(REAL, POSITIVE), (0.7, SMALL[1:]), (REAL, 1.3)],
    "huber": [(A(0.9), REAL), (POSITIVE, 1.2)],
    "pseudo_huber": [(A(0.9), REAL), (POSITIVE, 1.2)],
    "boxcox": [(POSITIVE, SMALL), (POSITIVE, REAL)],
    "boxcox1p": [(POSITIVE, SMALL), (POSITIVE, REAL)],
    "expn": [(2, POSITIVE), (0, POSITIVE)],
    **{key: [(1.5, POSITIVE), (A([[0.0], [2.0]]), POSITIVE)] for key in ["jv", "yv", "iv", "kv", "ive", "kve"]},
    "yn": [(2, POSITIVE), (0, POSITIVE)],
    "kn": [(2, POSITIVE), (0, POSITIVE)],
    "hyp0f1": [(1.5, SMALL)],
    "hyp1f1": [(1.5, 2.5, SMALL)],
    "hyp2f1": [(1.5, 2.5, 3.5, A([-0.5, 0.2, 0.4]))],
    "log_sum": [(ROWS,)],
    "log_weighted_sum": [(ROWS,)],
}
"""The name of a rule -> arguments. Those that have a formula and are arrays of floats are differentiated."""
WITHOUT_SCIPY_UFUNC = {"softplus"}  # SciPy writes it with NumPy's logaddexp
LAST_ONLY = {name for name, formulas in _tape_rules.special.SEVERAL.items() if hasattr(formulas[0], "__wrapped__")}


def log_weighted_sum(a, b=WEIGHTS):
    return sp.logsumexp(a, axis=1, b=b)


FUNCTIONS = {"log_sum": lambda a: sp.logsumexp(a, axis=-1, keepdims=True), "log_weighted_sum": log_weighted_sum}


def programs(name):
    """Each argument of each case alone, the others constant."""
    function = FUNCTIONS.get(name) or getattr(sp, name)
    for args in CASES[name]:
        for i in range(len(args)):
            last = i == len(args) - 1
            if isinstance(args[i], np.ndarray) and (last or name not in LAST_ONLY):
                yield lambda x, args=args, i=i: (function(*args[:i], x, *args[i + 1 :]),), args[i]


def check(name, order):
    rng = np.random.default_rng(0)
    for f, x in programs(name):
        if order == 1:
            assert_transposed(f, (x,), rng)
        else:
            assert_transposed(gradient(f, 1), (x, np.asarray(rng.normal(size=np.shape(f(x)[0])))), rng, rtol=2e-7)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_rule(name, order):
    check(name, order)


Z = A([0.7 + 0.4j, -0.3 - 0.8j, 1.2 + 0.3j])
OF_COMPLEX = {
    **{key: (getattr(sp, key),) for key in ["erf", "erfc", "erfcx", "erfi", "dawsn", "ndtr", "log_ndtr", "exp1"]},
    **{key: (getattr(sp, key),) for key in ["expi", "gamma", "loggamma"]},
    **{key: (partial(getattr(sp, key), 1.5),) for key in ["jv", "yv", "iv", "kv", "kve", "hyp0f1"]},
    "hyp1f1": (lambda z: sp.hyp1f1(1.5, 2.5, z),),
    "hyp2f1": (lambda z: sp.hyp2f1(1.5, 2.5, 3.5, 0.4 * z),),
    **{
        name: (lambda z, f=f: f(z, 1.5 * z), partial(f, 2.0))
        for name, f in {"xlogy": sp.xlogy, "xlog1py": sp.xlog1py}.items()
    },
    "softmax": (sp.softmax,),
    "log_softmax": (sp.log_softmax,),
    "log_sum": (sp.logsumexp,),
    "log_weighted_sum": (lambda z: sp.logsumexp(z, b=A([0.5, 1.5j, 2.0])),),
}
FIRST_ORDER = {"gamma", "loggamma"}
"""The second derivative holds SciPy's `zeta`, which takes no complex numbers."""


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", OF_COMPLEX)
def test_rule_of_complex_arguments(name, order):
    rng = np.random.default_rng(0)
    for function in OF_COMPLEX[name]:
        for x in (Z, A([0.6, -0.4, 1.1])):  # a real array, and a complex one made of it
            f = (lambda z, g=function: (g(z),)) if x is Z else (lambda t, g=function: (g(t * (0.8 + 0.6j)),))
            if order == 1:
                assert_transposed(f, (x,), rng)
            elif name in FIRST_ORDER:
                with pytest.raises(UnsupportedFunctionError, match="it has one for real arguments"):
                    gradient_of_gradient(f, x)
            else:
                v = rng.normal(size=np.shape(f(x)[0])) + 1j * rng.normal(size=np.shape(f(x)[0]))
                assert_transposed(gradient(f, 1), (x, v), rng, rtol=2e-7)


def gradient_of_gradient(f, x):
    v = np.ones(np.shape(f(x)[0]), complex)
    (found,), pull = vjp(gradient(f, 1), x, v)
    return pull((np.ones_like(found),))


def test_every_rule_of_complex_arguments_is_tested_and_the_others_refuse_them():
    assert set(OF_COMPLEX) == _tape_rules.special.HOLOMORPHIC
    for f in (sp.psi, sp.rgamma, lambda z: sp.ive(1.5, z)):
        with pytest.raises(UnsupportedFunctionError, match="it has one for real arguments"):
            dil.grad(lambda z, f=f: np.sum(np.real(f(z))))(Z)


def test_weights_are_differentiated():
    f = lambda b: (log_weighted_sum(ROWS, b),)  # noqa: E731
    assert_transposed(f, (WEIGHTS,), np.random.default_rng(0))
    both = lambda a, b: (log_weighted_sum(a, b),)  # noqa: E731
    rng = np.random.default_rng(1)
    assert_transposed(gradient(both, 1), (ROWS, WEIGHTS, rng.normal(size=2)), rng, rtol=2e-7)


RULES = [name.removeprefix("special.") for name in _tape_rules.RULES if name.startswith("special.")]


@pytest.mark.parametrize("name", [name for name in RULES if name not in WITHOUT_SCIPY_UFUNC])
def test_the_cases_bite(name, monkeypatch):
    """A formula that is wrong by one in a hundred thousand fails a case of its rule."""
    pull = _tape.Primitive.pull
    rule = _tape_rules.RULES[f"special.{name}"]
    positions = [i for i in range(len(rule.formulas)) if not hasattr(rule.formulas[i], "__wrapped__")]
    if name == "log_weighted_sum":
        positions = [0]  # the other is that of the test above
    for position in positions:

        def wrong(self, node, c, wanted, position=position):
            factors = [1 + 1e-5 * (self.name == f"special.{name}" and i == position) for i in wanted]
            return [factor * g for factor, g in zip(factors, pull(self, node, c, wanted), strict=True)]

        with monkeypatch.context() as patch:
            patch.setattr(_tape.Primitive, "pull", wrong)
            with pytest.raises(AssertionError):
                check(name, 1)


def test_softplus_has_the_slope_of_its_logarithm():
    """CuPy has a ufunc for it, and SciPy has none: its formula is that of log(1 + exp(x))."""
    (formula,) = _tape_rules.RULES["special.softplus"].formulas
    c = REAL - 1.0
    found = formula(namespace(REAL).plain, c, np.logaddexp(0.0, REAL), REAL)
    (expected,) = vjp(lambda x: (np.logaddexp(0.0, x),), REAL)[1]((c,))
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def slope(f, x):
    """The derivative by reverse mode, which forward mode agrees with, and the second derivative."""
    x = np.float64(x)
    first = dil.grad(f)(x)
    assert dil.jvp(f, (x,), (np.float64(1.0),))[1] == pytest.approx(first, rel=1e-12, abs=0.0)
    return float(first), float(dil.grad(dil.grad(f))(x))


@pytest.mark.parametrize(
    ("f", "x", "first", "second"),
    [
        (sp.expit, -700.0, math.exp(-700), math.exp(-700)),
        (sp.expit, -800.0, 0.0, 0.0),
        (sp.expit, 40.0, math.exp(-40), -math.exp(-40)),
        (sp.log_expit, -800.0, 1.0, 0.0),
        (sp.log_expit, 600.0, math.exp(-600), -math.exp(-600)),
        # the inverse of Mills' ratio, computed with forty digits
        (sp.log_ndtr, -40.0, 40.024968847207264, -0.99937733162140861),
        (sp.log_ndtr, -1e10, 1e10, -1.0),
        (sp.log_ndtr, 30.0, math.exp(-450) / math.sqrt(2 * math.pi), -30 * math.exp(-450) / math.sqrt(2 * math.pi)),
        (sp.erfcx, 1e8, -1e-16 / math.sqrt(math.pi), 2e-24 / math.sqrt(math.pi)),
        (sp.dawsn, -1e8, -0.5e-16, -1e-24),
        (sp.exprel, 1e-12, 0.5, 1 / 3),
        (sp.exprel, -1e5, 1e-10, 2e-15),
        (sp.j1, 0.0, 0.5, 0.0),
        (sp.i1, 0.0, 0.5, 0.0),
        (sp.rgamma, -2.0, 2.0, -4 * (1.5 - np.euler_gamma)),  # DLMF 5.7.1
        (sp.erfc, 26.0, -2 / math.sqrt(math.pi) * math.exp(-676), 104 / math.sqrt(math.pi) * math.exp(-676)),
        (lambda x: sp.boxcox(2.0, x), 0.0, math.log(2) ** 2 / 2, math.log(2) ** 3 / 3),
        (lambda x: sp.pseudo_huber(x, 1e-9), 1.0, 2.5e-37, -7.5e-37),
        (lambda x: sp.xlogy(0.0, x), 0.0, 0.0, 0.0),
        (lambda x: sp.kl_div(0.0, x), 0.0, 1.0, 0.0),
        (lambda x: sp.xlog1py(0.0, x), -1.0, 0.0, 0.0),
    ],
)
def test_tails(f, x, first, second):
    scale = max(abs(first), abs(second))
    assert slope(f, x) == (pytest.approx(first, rel=1e-12, abs=0.0 if first else 1e-15 * scale),
                           pytest.approx(second, rel=1e-9, abs=1e-13 * scale))  # fmt: skip


inf = math.inf


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1000.0, 1000.0, -1e300], None, [0.5, 0.5, 0.0]),
        ([-1000.0, -1000.0, -inf], None, [0.5, 0.5, 0.0]),
        ([-inf, -inf, -inf], None, [0.0, 0.0, 0.0]),
        ([1.0, inf, 1.0], [1.0, 0.0, 1.0], [0.5, 0.0, 0.5]),
        ([1.0, 2000.0, 1.0], [1.0, 0.0, 1.0], [0.5, 0.0, 0.5]),
        ([-1000.0, 0.0, -1000.0], [1.0, 0.0, 1.0], [0.5, 0.0, 0.5]),
        ([1.0, 1.0, 1.0], [3.0, -1.0, -1.0], [3.0, -1.0, -1.0]),
    ],
)
def test_logsumexp_far_out(a, b, expected):
    a, b = A(a), None if b is None else A(b)
    for f in (lambda u: sp.logsumexp(u, b=b), lambda u: sp.logsumexp(u, 0, b, True)[0]):
        np.testing.assert_allclose(dil.grad(f)(a), expected, rtol=1e-13)  # y is rounded to eps |y|


def test_a_row_of_minus_infinities_spoils_no_other():
    rows = A([[-inf, -inf], [800.0, 800.0], [-800.0, -800.0]])
    found = dil.grad(lambda u: np.sum(sp.logsumexp(u, axis=1)[1:]))(rows)
    np.testing.assert_allclose(found, [[0.0, 0.0], [0.5, 0.5], [0.5, 0.5]], rtol=1e-13)


@pytest.mark.parametrize(
    "f",
    [
        sp.logsumexp,
        lambda u: sp.logsumexp(a=u),
        lambda u: sp.logsumexp([u[0], u[1], u[2]]),
        lambda u: sp.logsumexp(u, b=2.0),
        lambda u: sp.logsumexp(u, return_sign=True)[0],
        lambda u: sp.logsumexp(u, b=A([-1.0, -1.0, -1.0]), return_sign=True)[0],
    ],
)
def test_spellings_of_logsumexp(f):
    np.testing.assert_allclose(dil.grad(f)(ROWS[0]), sp.softmax(ROWS[0]), rtol=1e-14)


def test_the_sign_of_logsumexp_is_constant():
    sign = dil.vjp(lambda u: sp.logsumexp(u, axis=1, b=-WEIGHTS, return_sign=True), ROWS)[0][1]
    np.testing.assert_array_equal(sign, [-1.0, -1.0])


def test_multigammaln():
    a = A([1.1, 5.2])  # above (d - 1) / 2 for d = 3
    for d in (1, 3):
        f = lambda x, d=d: (sp.multigammaln(x, d),)  # noqa: E731
        assert_transposed(f, (a,), np.random.default_rng(0))
        np.testing.assert_allclose(vjp(f, a)[0][0], sp.multigammaln(a, d), rtol=1e-14)
    with pytest.raises(ValueError, match=r"larger than \(d - 1\) / 2 = 1\.0"):
        dil.grad(lambda x: sp.multigammaln(x, 3))(np.float64(0.9))


@pytest.mark.parametrize("name", sorted(LAST_ONLY))
def test_other_arguments_are_refused_by_name(name):
    args = CASES[name][0]
    with pytest.raises(dil.UnsupportedFunctionError, match=rf"`{name}` in its argument"):
        dil.grad(lambda v: np.sum(getattr(sp, name)(v, *args[1:])))(np.float64(args[0]))


def test_a_function_without_a_rule_is_refused_by_name():
    with pytest.raises(dil.UnsupportedFunctionError, match="no derivative rule for `ellipk`"):
        dil.grad(sp.ellipk)(np.float64(0.3))


def run(code, **variables):
    """Run Python code in a new process."""
    root = Path(__file__).parent.parent
    paths = os.pathsep.join(map(str, (root, root / "backends")))
    inherited = {key: value for key, value in os.environ.items() if key != "SCIPY_ARRAY_API"}
    environment = {**inherited, "PYTHONPATH": paths, **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


EVERYWHERE = """
import importlib.util
import numpy as np, scipy.special as sp
import dil
X = np.random.default_rng(0).normal(size=(6, 3))
def score(u, X):
    z = X @ u
    return sp.logsumexp(-z) - sp.log_ndtr(z).sum() + sp.expit(z).sum() + sp.gammaln(1.0 + u * u).sum()
arrays = {"numpy": np.asarray}
if importlib.util.find_spec("torch"):
    import torch
    arrays["torch"] = lambda x: torch.asarray(x, dtype=torch.float64, requires_grad=False)
if importlib.util.find_spec("jax"):
    import jax
    jax.config.update("jax_enable_x64", True)
    arrays["jax"] = jax.numpy.asarray
u = np.asarray([0.3, -0.2, 0.5])
g = {name: np.asarray(dil.grad(score)(array(u), array(X))) for name, array in arrays.items()}
y = {}
for name in g.keys() - {"jax"}:  # compiling the layer takes long
    regular = lambda u, X, t: score(u, X) + t * (u * u).sum()
    layer = dil.argmin(regular, dil.solvers.Newton(), init=lambda X, t: 0.0 * X[0, :])
    y[name] = np.asarray(dil.grad(lambda t: layer(arrays[name](X), t).sum())(arrays[name](0.7)))
for found in (g, y):
    for name in found:
        np.testing.assert_allclose(found[name], found["numpy"], rtol=1e-9)
print(*g)
"""


def test_one_score_on_every_backend():
    assert run(EVERYWHERE, SCIPY_ARRAY_API="1").startswith("numpy")


def test_scipy_is_imported_by_nobody_else():
    code = (
        "import numpy as np, sys, dil; dil.grad(lambda u: np.sum(np.exp(u)))(np.ones(2)); print('scipy' in sys.modules)"
    )
    assert run(code).strip() == "False"


def test_scipy_imported_inside_the_function():
    code = """
import numpy as np, dil
def score(u):
    from scipy.special import logsumexp
    return logsumexp(u)
try:
    dil.grad(score)(np.ones(2))
except dil.UnsupportedFunctionError as e:
    print(e)
print(dil.grad(score)(np.ones(2)))
"""
    for variables in ({}, {"SCIPY_ARRAY_API": "1"}):
        said, found = run(code, **variables).splitlines()
        assert said.startswith("scipy.special was imported inside")
        assert found == "[0.5 0.5]"


def test_the_code_of_scipy_stays_what_it_was():
    import inspect

    dil.grad(sp.logsumexp)(ROWS[0])
    assert str(inspect.signature(sp.logsumexp)) == "(a, axis=None, b=None, keepdims=False, return_sign=False)"
    assert sp.softmax.__name__ == "softmax"
    assert sp.logsumexp([0.0, 0.0], b=[1, 1]) == math.log(2.0)
    with pytest.raises(TypeError, match="unexpected keyword"):
        sp.softmax(ROWS, axes=1)


@pytest.mark.parametrize("f", [sp.expn, sp.yn, sp.kn])
def test_an_order_that_scipy_cuts_to_an_integer(f):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy warns of the cut
        found = dil.grad(lambda x: np.sum(f(1.6, x)))(POSITIVE)
    np.testing.assert_array_equal(found, dil.grad(lambda x: np.sum(f(1, x)))(POSITIVE))
