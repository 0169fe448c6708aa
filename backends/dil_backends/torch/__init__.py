"""The torch backend: plain autograd for derivatives, an `autograd.Function` for the layer, loops in Python.

Users import its doors `dil_backends.nn` and `dil_backends.optim`. It imports the rooms of dil, never another backend.
"""
