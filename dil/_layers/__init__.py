"""The implicit function theorem, and the layers built on it: argmin, root, fixed point, value.

It imports every room above: `_base`, `_frameworks`, `_problem`, `linear` and `_diagnostics`.
"""
