"""Linear solvers for the backward pass, preconditioners, and the automatic choice. They need only products with A.

It imports only `_base` and `_frameworks`.
"""

from dil._base.operator import Operator
from dil.linear import preconditioners
from dil.linear._approximate import Neumann, OneStep
from dil.linear._auto import Auto
from dil.linear._bicgstab import BiCGSTAB
from dil.linear._cg import CG
from dil.linear._direct import Direct
from dil.linear._gmres import GMRES
from dil.linear._idr import IDR
from dil.linear._minres import MINRES
from dil.linear._normal_cg import NormalCG
from dil.linear._recycle import Recycle
from dil.linear._solver import LinearSolver
from dil.linear._sparse_direct import SparseDirect
from dil.linear._spectrum import Spectrum, spectrum
from dil.linear._warm_start import WarmStart
from dil.linear.preconditioners import Jacobi, LBFGSPairs, Nystrom, SparseILU

__all__ = [
    "CG",
    "GMRES",
    "IDR",
    "MINRES",
    "Auto",
    "BiCGSTAB",
    "Direct",
    "Jacobi",
    "LBFGSPairs",
    "LinearSolver",
    "Neumann",
    "NormalCG",
    "Nystrom",
    "OneStep",
    "Operator",
    "Recycle",
    "SparseDirect",
    "SparseILU",
    "Spectrum",
    "WarmStart",
    "preconditioners",
    "spectrum",
]
