"""Helpers that know no layer and no framework: arrays, trees, options, errors, statuses, solutions, operators.

It imports NumPy and array_api_compat alone, and no other room.
"""
