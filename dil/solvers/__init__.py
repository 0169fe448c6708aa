"""Forward solvers: each is `solver(fun, init, *args, **kwargs)` and returns a `dil.Solution`. Any such callable does.

It imports `_base`, `_frameworks`, `_problem` and `linear`.
"""

from dil.solvers._anderson import Anderson
from dil.solvers._cross_entropy import CrossEntropy
from dil.solvers._fixed_point import FixedPoint
from dil.solvers._gradient_descent import GradientDescent
from dil.solvers._lbfgs import LBFGS
from dil.solvers._newton import Newton
from dil.solvers._random_shooting import RandomShooting
from dil.solvers._scipy import SciPy
from dil.solvers._scipy_root import SciPyRoot
from dil.solvers._sequence import Sequence

__all__ = [
    "LBFGS",
    "Anderson",
    "CrossEntropy",
    "FixedPoint",
    "GradientDescent",
    "Newton",
    "RandomShooting",
    "SciPy",
    "SciPyRoot",
    "Sequence",
]
