"""Preconditioners of `dil.linear.CG` and `GMRES`: approximations of A^-1. Each is prepared again for every system."""

from dil.linear.preconditioners._jacobi import Jacobi
from dil.linear.preconditioners._lbfgs_pairs import LBFGSPairs
from dil.linear.preconditioners._nystrom import Nystrom
from dil.linear.preconditioners._preconditioner import Preconditioner, Prepared
from dil.linear.preconditioners._sparse_ilu import SparseILU

__all__ = ["Jacobi", "LBFGSPairs", "Nystrom", "Preconditioner", "Prepared", "SparseILU"]
