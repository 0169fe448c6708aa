"""The entries of a sparse matrix, found on the host from its products with sums of columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dil.linear._sparse_factor import random_vector

FINE = 1e-10
"""The machine epsilon above which a third product confirms each index."""
NOISE = 64
"""The rounding of a product, in units of eps, that counts as zero beside the other entries of its row."""
SHARP = 8
"""An entry keeps its digits if what was taken off its sum is at most this many times as large."""


class Sums(NamedTuple):
    """The columns of a matrix in groups, j in the group j mod `groups`, and its products with sums of them.

    A sum has the factors s_j t_j^k for k = 0, 1, ...: s is random, and t_j = 1 + j // groups tells where the column is.
    """

    groups: int
    images: Any
    """The products, (powers, count, n), less the entries that are known."""
    terms: Any
    """The sums of the sizes of those entries, of the same shape."""


@dataclass
class Peeling:
    """The entries of an n x n matrix D that are known so far.

    A row that has one entry in a group shows it: the quotient of two sums is t_j, and the first one over s_j is the
    entry. It is then taken off all other sums of the row, which may leave single entries there, and so on. This is how
    invertible Bloom lookup tables are decoded (Goodrich and Mitzenmacher 2011). Groups by remainders separate all rows
    of a regular grid alike, and two columns that meet for one number of groups differ for another.
    """

    n: int
    machine_eps: float
    """That of the dtype of the products."""
    sums: list[Sums] = field(default_factory=list)
    places: Any = None
    """i n + j of the entries in the order in which they were found; one may come twice, and its values add up."""
    values: Any = None
    sizes: Any = None
    """The largest sum of each row, (n,)."""
    is_sharp: bool = True
    """Whether no entry has lost digits to others that were taken off its sum."""

    def __post_init__(self) -> None:
        import numpy as np

        self.places, self.values, self.sizes = np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(self.n)

    @property
    def tolerance(self) -> float:
        """The share of the terms of a sum that counts as rounding."""
        return float(self.machine_eps ** (2 / 3))

    def add(self, groups: int, images: Any) -> None:
        """Add the products with the sums of as many groups, (powers * groups, n), and find entries."""
        import numpy as np

        images = images.reshape(powers_for(self.machine_eps), groups, self.n).copy()
        self.sizes = np.maximum(self.sizes, np.abs(images[0]).max(axis=0))
        new = Sums(groups, images, np.zeros_like(images))
        _take_off(new, self.places, self.values)
        self.sums.append(new)
        before = self.n * groups + 1
        while True:
            found = sum([self._peel(sums) for sums in self.sums])
            if not 0 < found < before:  # what does not get less has no end, as for products that are random
                return
            before = found

    def add_rows(self, rows: Any, values: Any) -> None:
        """Take the rows with these numbers as known: values, (len(rows), n)."""
        import numpy as np

        known = np.isin(self.places // self.n, rows)
        self.places, self.values = self.places[~known], self.values[~known]
        which, columns = np.nonzero(values)
        self.places = np.concatenate([self.places, rows[which].astype(np.int64) * self.n + columns])
        self.values = np.concatenate([self.values, values[which, columns]])
        for sums in self.sums:
            sums.images[:, :, rows] = 0.0

    def open_rows(self) -> Any:
        """Return the rows of which a sum is not explained."""
        import numpy as np

        is_open = np.zeros(self.n, dtype=bool)
        for sums in self.sums:
            rounding = self.tolerance * sums.terms[0] + NOISE * self.machine_eps * self.sizes
            is_open |= np.any(np.abs(sums.images[0]) > rounding, axis=0)
        return np.flatnonzero(is_open)

    def entries(self) -> tuple[Any, Any]:
        """Return i n + j of the entries in order, each once, and their values."""
        import numpy as np

        order = np.argsort(self.places, kind="stable")
        places, values = self.places[order], self.values[order]
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        if starts.size == places.size:
            return places, values
        self.is_sharp = False
        sums, sizes = np.add.reduceat(values, starts), np.add.reduceat(np.abs(values), starts)
        # what was taken for an entry by chance was found again with the other sign
        some = np.abs(sums) > self.tolerance * sizes
        return places[starts[some]], sums[some]

    def _peel(self, sums: Sums) -> int:
        """Take the entries that stand alone in a sum off all sums. Return how many there are."""
        import numpy as np

        size = sums.images[0].size
        flat, terms = sums.images.reshape(-1, size), sums.terms.reshape(-1, size)
        at = np.flatnonzero(np.abs(flat[0]) > self.tolerance * terms[0])
        if at.size == 0:
            return 0
        groups, rows = np.divmod(at, self.n)
        # row by row, which takes a fraction of the time of flat[:, at]
        sums_at, terms_at = [x[at] for x in flat], [x[at] for x in terms]
        with np.errstate(all="ignore"):
            t = np.rint(sums_at[1] / sums_at[0])
            columns = (t - 1) * sums.groups + groups
            alone = (t >= 1) & (columns < self.n)
            for low in range(len(flat) - 1):
                high = low + 1
                gap = np.abs(sums_at[high] - t * sums_at[low])
                noise = NOISE * self.machine_eps * (terms_at[high] + t * terms_at[low])
                alone &= gap <= self.tolerance * np.abs(sums_at[high]) + noise
        at, rows, columns = at[alone], rows[alone], columns[alone].astype(np.int64)
        sums_at, terms_at = [x[alone] for x in sums_at], [x[alone] for x in terms_at]
        values, places = sums_at[0] / random_vector(self.n)[columns], rows * self.n + columns
        self.is_sharp &= bool(np.all(terms_at[0] <= SHARP * np.abs(sums_at[0])))
        for k, (image, before) in enumerate(zip(sums_at, terms_at, strict=True)):
            terms[k, at] = before + np.abs(image)
            flat[k, at] = 0.0
        for other in self.sums:
            if other is not sums:
                _take_off(other, places, values)
        self.places = np.concatenate([self.places, places])
        self.values = np.concatenate([self.values, values])
        return int(places.size)


def powers_for(machine_eps: float) -> int:
    """Return the number of products with each group: two, or three where an index has few digits."""
    return 2 if machine_eps < FINE else 3


def factors(n: int, count: int, powers: int) -> tuple[Any, Any]:
    """Return the group of each column, (n,), and the factors s_j t_j^k of the sums, (powers, n)."""
    import numpy as np

    groups, t = np.arange(n) % count, 1.0 + np.arange(n) // count
    return groups, random_vector(n) * t ** np.arange(powers)[:, None]


def _take_off(sums: Sums, places: Any, values: Any) -> None:
    """Take entries off the sums."""
    import numpy as np

    powers, count, n = sums.images.shape
    rows, columns = np.divmod(places, n)
    flat = (columns % count) * n + rows
    _, scaled = factors(n, count, powers)
    for k in range(powers):
        part = values * scaled[k, columns]
        np.subtract.at(sums.images[k].reshape(-1), flat, part)
        np.add.at(sums.terms[k].reshape(-1), flat, np.abs(part))
