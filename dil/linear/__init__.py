"""Linear solvers for the backward pass, in the array API: products with the matrix are all that they need."""

from dil.linear import preconditioners
from dil.linear._approximate import Neumann, OneStep
from dil.linear._cg import CG
from dil.linear._operator import Operator
from dil.linear._solver import LinearSolver
from dil.linear._warm_start import WarmStart
from dil.linear.preconditioners import Jacobi, LBFGSPairs, Nystrom

__all__ = [
    "CG",
    "Jacobi",
    "LBFGSPairs",
    "LinearSolver",
    "Neumann",
    "Nystrom",
    "OneStep",
    "Operator",
    "WarmStart",
    "preconditioners",
]
