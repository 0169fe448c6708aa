"""The torch backend: plain autograd for derivatives, an `autograd.Function` for the layer, loops in Python.

Users import `dil_backends.nn` and `dil_backends.optim`. This package imports packages of dil, never another backend.
"""
