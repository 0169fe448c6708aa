"""The implicit function theorem, and the layers built on it: argmin, root, fixed point, value.

It imports these packages: `_base`, `_frameworks`, `_problem`, `linear` and `_diagnostics`.
"""
