"""The mathematics of one call: the unknown u, the score or the equation, F(u) = 0, and the Jacobian of F.

It imports `_base` and `_frameworks`.
"""
