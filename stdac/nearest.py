"""The nearest points to some queries, exactly: `Nearest` is shown all points a block at a time and keeps the best.

Blocks of numpy's matrix products, not scikit-learn's brute force, which does the same: the points need not be in memory
together, and what finds neighbours by an ONNX file needs no scikit-learn installed.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

BLOCK = 1 << 22  # distances that are in memory at once
TIES = 16


class Nearest:
    """The n nearest of the points that were added, to each of Q queries, by Euclidean distance.

    queries: (Q, D) float32. known: (Q,) int64, for each a key, and points with the same key are no neighbours of it
    (-1: none has it). distance: (Q, n) float64, ascending, inf where there are fewer points. row: (Q, n) int64, the
    number of the point, -1 there. Of equally near points the one with the lower number is nearer, if they are added in
    that order.

    >>> nearest = Nearest(np.zeros((1, 2), np.float32), 2)
    >>> nearest.add(np.array([[3, 4], [0, 1], [9, 9]], np.float32), np.arange(3))
    >>> nearest.row.tolist(), nearest.distance.tolist()
    ([[1, 0]], [[1.0, 5.0]])
    """

    def __init__(self, queries: Floats, n: int, known: Rows | None = None) -> None:
        self.queries = queries
        self.known = np.full(len(queries), -1) if known is None else known
        self.distance = np.full((len(queries), n), np.inf)
        self.row = np.full((len(queries), n), -1)

    def add(self, points: Floats, rows: Rows, keys: Rows | None = None) -> None:
        """Take points (B, D) float32 into account, with their numbers (B,) and their keys (B,), the numbers if not
        given."""
        keys = rows if keys is None else keys
        step = max(1, BLOCK // max(len(points), 1))
        exact = points.astype(np.float64)
        norms = np.square(exact).sum(1)
        for start in range(0, len(self.queries), step):
            self._add_to(slice(start, start + step), exact, norms, rows, keys)

    def _add_to(
        self, part: slice, points: NDArray[np.float64], norms: NDArray[np.float64], rows: Rows, keys: Rows
    ) -> None:
        """The same for some of the queries."""
        queries = self.queries[part].astype(np.float64)
        squared = (
            np.square(queries).sum(1)[:, None] - 2 * queries @ points.T + norms
        )  # (q, B), in float64 all but exact
        known = self.known[part]
        squared[(known[:, None] == keys) & (known >= 0)[:, None]] = np.inf
        n = self.distance.shape[1]

        # those that may be among the n nearest, and a few that are as near as the last of them
        worst = np.square(self.distance[part, -1])
        if len(points) > n:
            worst = np.minimum(worst, np.partition(squared, n - 1)[:, n - 1])
        slack = 1e-12 * (np.square(queries).sum(1) + norms.max(initial=0))  # what float64 may be wrong by
        query, point = np.nonzero((squared <= (worst + slack)[:, None]) & np.isfinite(squared))
        order = np.lexsort((rows[point], squared[query, point], query))
        query, point = query[order], point[order]
        few = _rank_within(query) < n + TIES
        query, point = query[few], point[few]

        # the distances of these from the differences, and the best of them and of those from before
        found = np.sqrt(np.square(queries[query] - points[point]).sum(1))
        old = np.nonzero(self.row[part] >= 0)
        query = np.concatenate([old[0], query])
        distance = np.concatenate([self.distance[part][old], found])
        row = np.concatenate([self.row[part][old], rows[point]])
        order = np.lexsort((row, distance, query))
        query, distance, row = query[order], distance[order], row[order]
        rank = _rank_within(query)
        best = rank < n
        self.distance[part][query[best], rank[best]] = distance[best]
        self.row[part][query[best], rank[best]] = row[best]


def _rank_within(groups: Rows) -> Rows:
    """The place of each item among those of its group; groups (M,), ascending."""
    rank: Rows = np.arange(len(groups)) - np.searchsorted(groups, groups)
    return rank
