"""Ways to choose columns: the library's and those it is compared with.

The latter are written as simply as they can be, in NumPy and SciPy.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import scipy.linalg
import scipy.linalg.interpolative

from ..lowrank import interpolative

OURS = ('osinsky', 'strong_rrqr', 'randomized', 'pivoted_qr')


class Choice(NamedTuple):
  """Columns, and coefficients [r, n] of all others."""

  indices: np.ndarray
  coefficients: np.ndarray


def fit(a: np.ndarray, indices: np.ndarray) -> Choice:
  """Least squares coefficients of columns, by LAPACK's pivoted QR."""
  options = dict(lapack_driver='gelsy', cond=1e-13, check_finite=False)
  return Choice(indices, scipy.linalg.lstsq(a[:, indices], a, **options)[0])


def _sampled(weights: Callable) -> Callable:
  """Columns drawn one after the other, in proportion to weights."""

  def choose(a, rank, seed):
    p = weights(a, rank)
    p = p + 1e-12 * p.max()  # Should fewer than the rank have weight at all.
    rng = np.random.default_rng(seed)
    return fit(a, rng.choice(len(p), rank, replace=False, p=p / p.sum()))

  return choose


def _leverage(a: np.ndarray, rank: int) -> np.ndarray:
  vh = np.linalg.svd(a, full_matrices=False)[2]
  return np.sum(vh[:rank] ** 2, axis=0)


def _optim_rid(a: np.ndarray, rank: int, seed: int) -> Choice:
  """Article 10501: of 4 r columns by chance, those of pivoted QR."""
  n = a.shape[1]
  some = np.random.default_rng(seed).choice(n, min(4 * rank, n), replace=False)
  order = scipy.linalg.qr(a[:, some], mode='r', pivoting=True)[-1]
  return fit(a, some[order[:rank]])


def _scipy(a: np.ndarray, rank: int, seed: int, *, rand: bool) -> Choice:
  order, projection = scipy.linalg.interpolative.interp_decomp(
    a, rank, rand=rand, rng=np.random.default_rng(seed)
  )
  coefficients = np.hstack([np.eye(rank), projection])[:, np.argsort(order)]
  return Choice(order[:rank], coefficients)


BASELINES: dict[str, Callable[[np.ndarray, int, int], Choice]] = {
  'SciPy-ID': functools.partial(_scipy, rand=False),
  'SciPy-RID': functools.partial(_scipy, rand=True),
  'Optim-RID': _optim_rid,
  'leverage': _sampled(_leverage),
  'norms': _sampled(lambda a, rank: np.sum(a**2, axis=0)),
  'uniform': _sampled(lambda a, rank: np.ones(a.shape[1])),
}


def choose(name: str, a, rank: int, seed: int) -> Choice:
  """The columns of a selector, ours or not; `a` is double precision."""
  if name in BASELINES:
    return BASELINES[name](np.asarray(a), rank, seed)
  found = interpolative(a, rank, method=name, key=jax.random.key(seed))
  return Choice(*jax.block_until_ready(tuple(found)))
