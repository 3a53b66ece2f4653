"""Ridge regression from chunks of rows, in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

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
        ridge: see above.
        intercept: whether there is a c; else X is taken as it is, and c is zero.
        free: which entries of D may differ from zero, ``(groups, columns, outputs)``; None for all.
            There have to be as many rows as columns then.
    """

    def __init__(
        self,
        groups: int,
        columns: int,
        outputs: int,
        *,
        rows: int,
        intercept: bool,
        ridge: float,
        free: np.ndarray | None = None,
    ) -> None:
        self._free = free
        self._intercept = intercept
        self._ridge = ridge
        self._dual = rows < columns
        self._kept: list[np.ndarray] = []
        self._shift = np.zeros(0)
        self._count = 0
        self._x = np.zeros((groups, 1, columns))
        self._gram = np.zeros((groups, 0 if self._dual else columns, columns))
        self._inverse: list[Callable[[np.ndarray], np.ndarray]] = []
        self._shape = groups, columns, outputs
        self._start()

    def _start(self) -> None:
        groups, columns, outputs = self._shape
        self._wanted: list[np.ndarray] = []
        self._r = np.zeros((groups, 1, outputs))
        self._cross = np.zeros((groups, 0 if self._dual else columns, outputs))

    def add(self, x: np.ndarray, r: np.ndarray) -> None:
        """Some more rows. After `solve`, the same inputs can be given again with other targets."""
        if not self._shift.size:  # near the mean, so that little is lost in taking the mean out
            mean = x.mean(axis=1, keepdims=True)
            self._shift = mean if self._intercept else np.zeros_like(mean)
        self._r += r.sum(axis=1, keepdims=True, dtype="float64")
        x = x - self._shift
        if not self._inverse:
            self._add_inputs(x)
        if self._dual:
            self._wanted.append(r)
        else:
            self._cross += x.swapaxes(1, 2) @ r

    def _add_inputs(self, x: np.ndarray) -> None:
        self._count += x.shape[1]
        self._x += x.sum(axis=1, keepdims=True, dtype="float64")
        if self._dual:
            self._kept.append(x)
        else:
            self._gram += x.swapaxes(1, 2) @ x

    def solve(self) -> tuple[np.ndarray, np.ndarray]:
        """D, ``(groups, columns, outputs)``, and c, ``(groups, outputs)``."""
        x, r = (a / self._count * self._intercept for a in (self._x, self._r))
        if not self._inverse:
            self._invert(x)
        if self._dual:
            wanted = np.concatenate(self._wanted, axis=1) - r
            d = [a.T @ f(b) for a, f, b in zip(self._kept[0], self._inverse, wanted, strict=True)]
        else:
            self._cross -= self._count * x.swapaxes(1, 2) @ r
            d = [f(b) for f, b in zip(self._inverse, self._cross, strict=True)]
        change = d[0][None] if len(d) == 1 else np.stack(d)  # large layers have one group
        self._start()
        return change, (r - (x + self._shift) @ change)[:, 0] * self._intercept

    def _invert(self, x: np.ndarray) -> None:
        """Prepare to solve for any targets."""
        columns = self._shape[1]
        if self._dual:
            self._kept = [np.concatenate(self._kept, axis=1)]
            self._kept[0] -= x.astype(self._kept[0].dtype)
            for a in self._kept[0]:
                gram = (a @ a.T).astype("float64")
                self._inverse.append(_solver(gram, self._ridge * gram.trace() / columns))
        else:
            self._gram -= self._count * x.swapaxes(1, 2) @ x
            for index, gram in enumerate(self._gram):
                ridge = self._ridge * gram.trace() / columns
                if self._free is None:
                    self._inverse.append(_solver(gram, ridge))
                else:
                    self._inverse.append(_masked_solver(gram, ridge, self._free[index]))
            self._gram = np.zeros((0, 0, 0))


def _solver(a: np.ndarray, ridge: float) -> Callable[[np.ndarray], np.ndarray]:
    """A function that solves ``(a + ridge·1) x = b``.

    `a` is symmetric, without negative eigenvalues; it is overwritten.
    """
    a.flat[:: len(a) + 1] += ridge
    try:
        factor = scipy.linalg.cho_factor(a, check_finite=False)
    except np.linalg.LinAlgError:  # singular to rounding: the smallest solution
        logger.debug("A singular matrix of %d rows.", len(a))
        return _smallest(a)
    return lambda b: scipy.linalg.cho_solve(factor, b, check_finite=False)


def _masked_solver(
    a: np.ndarray, ridge: float, free: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """As `_solver`, but every column of x is zero where it is not free."""
    at = [np.flatnonzero(own) for own in free.T]
    known: dict[int, Callable[[np.ndarray], np.ndarray]] = {}
    small = sum(len(own) ** 2 for own in at) <= LARGEST  # then factors are held for later rounds

    def solver(column: int) -> Callable[[np.ndarray], np.ndarray]:
        return _solver(a[np.ix_(at[column], at[column])], ridge)

    def solve(b: np.ndarray) -> np.ndarray:
        x = np.zeros_like(b)
        for column, own in enumerate(at):
            if len(own):
                factor = known.get(column) or solver(column)
                x[own, column] = factor(b[own, column])
                if small:
                    known[column] = factor
        return x

    return solve


def _smallest(a: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    if not np.isfinite(a).all():
        return lambda b: np.full_like(b, np.nan)
    inverse = scipy.linalg.pinvh(a, rtol=1e-10)
    return lambda b: inverse @ b
