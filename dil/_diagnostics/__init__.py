"""What is said about an answer: stationarity, error bound, records, reports, and what happens after a failure.

It imports `_base`, `_frameworks`, `_problem` and `linear`.
"""
