"""Checks of an answer, and what happens after a failure: stationarity, error bound, records, reports, policy.

It imports `_base`, `_frameworks`, `_problem` and `linear`.
"""
