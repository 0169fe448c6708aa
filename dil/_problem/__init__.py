"""The mathematics of one call: the unknown u, the score or the equation, F(u) = 0, and the Jacobian of F.

This package imports `_base` and `_frameworks`.
"""
