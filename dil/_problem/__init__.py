"""The mathematics of one call: the unknown, the score or the equation, F(u) = 0 and its Jacobian.

It imports `_base` and `_frameworks`.
"""
