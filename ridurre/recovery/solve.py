"""Ridge regression from chunks of rows, in bounded memory."""

from __future__ import annotations

import logging

import numpy as np
import scipy.linalg

logger = logging.getLogger("ridurre")
#: Largest number of entries of the matrices that are inverted (8 bytes each).
LARGEST = 1 << 26


def rows_for(groups: int, columns: int, rows: int) -> int:
    """How many of the rows can be used, so that memory stays bounded.

    As many as there are, if the matrix ``columns × columns`` fits; else so many that the rows
    themselves, and the matrix ``rows × rows``, do.
    """
    if rows <= columns or groups * columns**2 > LARGEST:
        rows = min(rows, columns, LARGEST // (groups * columns), int((LARGEST / groups) ** 0.5))
    return max(rows, 1)


class Ridge:
    """Finds D and c that minimise ``‖R − X·D − c‖² + λ‖D‖²``, λ = ridge · mean diag(XᵀX).

    X is taken about its mean, so that c is not shrunk. Products are formed in the rows' own
    precision, chunk by chunk, summed up and solved in float64. Where there are more columns than
    rows, the equivalent problem of the size of the rows is solved.

    Args:
        groups, columns, outputs: of X, ``(groups, rows, columns)``, and R, ``(groups, rows,
            outputs)``.
        rows: how many there will be in all, at most.
        intercept: whether there is a c; else X is taken as it is, and c is zero.
    """

    def __init__(
        self, groups: int, columns: int, outputs: int, *, rows: int, intercept: bool
    ) -> None:
        self.intercept = intercept
        self.count = 0
        self._dual = rows < columns
        self._chunks: list[tuple[np.ndarray, np.ndarray]] = []
        self._shift: np.ndarray | None = None
        self._x = np.zeros((groups, 1, columns))
        self._r = np.zeros((groups, 1, outputs))
        self._gram = np.zeros((groups, 0 if self._dual else columns, columns))
        self._cross = np.zeros((groups, 0 if self._dual else columns, outputs))

    def add(self, x: np.ndarray, r: np.ndarray) -> None:
        """Some more rows."""
        if self._shift is None:  # near the mean, so that little is lost in taking the mean out
            mean = x.mean(axis=1, keepdims=True)
            self._shift = mean if self.intercept else np.zeros_like(mean)
        x = x - self._shift
        self.count += x.shape[1]
        self._x += x.sum(axis=1, keepdims=True, dtype="float64")
        self._r += r.sum(axis=1, keepdims=True, dtype="float64")
        if self._dual:
            self._chunks.append((x, r))
        else:
            self._gram += x.swapaxes(1, 2) @ x
            self._cross += x.swapaxes(1, 2) @ r

    def means(self) -> np.ndarray:
        """The mean of R, ``(groups, outputs)``."""
        return self._r[:, 0] / self.count

    def solve(self, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        """D, ``(groups, columns, outputs)``, and c, ``(groups, outputs)``."""
        x, r = self._x / self.count, self._r / self.count
        if not self.intercept:
            x, r = np.zeros_like(x), np.zeros_like(r)
        d = self._solve_dual(x, r, ridge) if self._dual else self._solve_primal(x, r, ridge)
        if not self.intercept:
            return d, r[:, 0]
        shift = np.zeros_like(x) if self._shift is None else self._shift
        return d, (r - (x + shift) @ d)[:, 0]

    def _solve_primal(self, x: np.ndarray, r: np.ndarray, ridge: float) -> np.ndarray:
        self._gram -= self.count * x.swapaxes(1, 2) @ x
        self._cross -= self.count * x.swapaxes(1, 2) @ r
        return np.stack(
            [
                _solve(a, b, ridge * a.trace() / len(a))
                for a, b in zip(self._gram, self._cross, strict=True)
            ]
        )

    def _solve_dual(self, x: np.ndarray, r: np.ndarray, ridge: float) -> np.ndarray:
        rows, targets = (np.concatenate(part, axis=1) for part in zip(*self._chunks, strict=True))
        self._chunks.clear()
        rows -= x.astype(rows.dtype)
        found = []
        for a, b in zip(rows, targets - r, strict=True):
            gram = (a @ a.T).astype("float64")
            found.append(a.T @ _solve(gram, b, ridge * gram.trace() / a.shape[1]))
        return _stack(found)


def _stack(parts: list[np.ndarray]) -> np.ndarray:
    """One copy less where it matters: large layers have one group."""
    return parts[0][None] if len(parts) == 1 else np.stack(parts)


def _solve(a: np.ndarray, b: np.ndarray, ridge: float) -> np.ndarray:
    """Solve ``(a + ridge·1) x = b`` for a symmetric matrix that has no negative eigenvalues."""
    a.flat[:: len(a) + 1] += ridge
    try:
        factor = scipy.linalg.cho_factor(a, check_finite=False)
        x = scipy.linalg.cho_solve(factor, b, check_finite=False)
    except np.linalg.LinAlgError:  # singular to rounding: the smallest solution
        logger.debug("A singular matrix of %d rows.", len(a))
        x = scipy.linalg.pinvh(a, rtol=1e-10) @ b
    return x
