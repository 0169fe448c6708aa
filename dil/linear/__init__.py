"""Linear solvers for the backward pass, in the array API: products with the matrix are all that they need."""

from dil.linear._bicgstab import BiCGSTAB
from dil.linear._cg import CG
from dil.linear._gmres import GMRES
from dil.linear._minres import MINRES
from dil.linear._normal_cg import NormalCG
from dil.linear._operator import Operator
from dil.linear._solver import LinearSolver

__all__ = ["CG", "GMRES", "MINRES", "BiCGSTAB", "LinearSolver", "NormalCG", "Operator"]
