"""Scales of rows and columns that take their units from a matrix, whatever these are."""

from __future__ import annotations

from typing import Any

STEPS = 100
"""The most steps of the least squares solver: what is left varies slowly along the graph of the matrix."""


def logarithmic_scales(rows: Any, columns: Any, sizes: Any, n: int) -> tuple[Any, Any]:
    """Return what to divide the rows and the columns by, (n,) each: powers of two.

    They bring the sizes |a_ij| of the entries that are not zero nearest to one in least squares of the logarithms
    (Curtis and Reid 1972). So the result is the same for D A E with any diagonal matrices D and E, which the size of
    the largest entry of a row is not: that entry stands where the unit of the column is large. A symmetric matrix gets
    the same scales twice.
    """
    import numpy as np
    import scipy.sparse.linalg

    known = np.flatnonzero(sizes)
    m = known.size
    places = np.arange(m)
    incidence = scipy.sparse.csr_array(
        (np.ones(2 * m), (np.concatenate([places, places]), np.concatenate([rows[known], n + columns[known]]))),
        shape=(m, 2 * n),
    )
    logs = scipy.sparse.linalg.lsmr(incidence, np.log2(sizes[known]), atol=0.0, btol=0.0, maxiter=STEPS)[0]
    scales = np.ldexp(1.0, np.rint(logs).astype(int))
    return scales[:n], scales[n:]
