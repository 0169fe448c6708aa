"""Helpers that use no layer and no framework: arrays, trees, options, errors, statuses, solutions, operators.

It imports only NumPy and array_api_compat.
"""
