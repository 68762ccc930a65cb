r"""The matrix sign of the Muon optimizer, exactly and by matrix products.

Shapes: `...` batch, `m n` matrix, `k` steps. For :math:`X = U S V^T` the matrix
sign is :math:`\mathrm{msign}(X) = U V^T = X (X^T X)^{-1/2}`, every nonzero
singular value set to one; it is the steepest descent direction of the spectral
norm. Newton-Schulz iterations reach it with odd quintic polynomials,

.. math::
  A = X X^T, \qquad X \leftarrow a X + (b A + c A^2) X,

which act on the singular values alone: :math:`p(s) = a s + b s^3 + c s^5`.

References:
  Su, `Muon: from vectors to matrices <https://kexue.fm/archives/10592>`_ and
  `msign, coefficients <https://kexue.fm/archives/10922>`_, 2024-25;
  Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024;
  Amsel et al., `The Polar Express <https://arxiv.org/abs/2505.16932>`_, 2025.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_rank

Triple = tuple[float, float, float]
Coefficients = Sequence[Triple]

# The relative width of the smallest interval that the generator still fits;
# from the authors' code, where it keeps the first polynomials from spending
# everything on the smallest singular values.
_CUSHION = 0.02407327424182761
# The authors divide the argument by 1.01 so that rounding above one is safe.
_SAFETY = 1.01
PRECONDITIONING = ('frobenius', 'schatten', 'spectral', 'aol')
_SEGMENT = 3  # Gram steps between restarts.
# Entries below which matrices are small enough for XLA to run side by side.
SMALL = 1 << 16


def _best_quintic(lower: float, upper: float) -> tuple[float, float, float]:
  """The odd quintic closest to one on `[lower, upper]`, by Remez exchange."""
  if lower / upper > 1 - 5e-6:  # The limit: Pade's quintic.
    return 15 / 8 / upper, -10 / 8 / upper**3, 3 / 8 / upper**5
  inner = np.array([3 * lower + upper, lower + 3 * upper]) / 4
  error = np.inf
  for _ in range(100):
    nodes = np.array([lower, *inner, upper])
    system = np.stack([nodes, nodes**3, nodes**5, [1, -1, 1, -1]], axis=1)
    a, b, c, new_error = np.linalg.solve(system, np.ones(4))
    if abs(new_error - error) <= 1e-15:
      break
    error = new_error
    root = np.sqrt(9 * b**2 - 20 * a * c)
    inner = np.sqrt(np.array([-3 * b - root, -3 * b + root]) / (10 * c))
  return float(a), float(b), float(c)


def polar_express_coefficients(
  steps: int,
  *,
  lower: float = 1e-3,
  cushion: float = _CUSHION,
  safety: float = 0.0,
) -> tuple[tuple[float, float, float], ...]:
  r"""Coefficients of the optimal composition of odd quintics (Polar Express).

  Each polynomial is the minimax approximation of one on the interval that the
  ones before it left: with :math:`[l, u]` the present interval, the best
  quintic on :math:`[\max(l, \text{cushion} \cdot u), u]` is found by Remez
  exchange, recentred so that :math:`p(l)` and :math:`p(u)` lie symmetric about
  one, and :math:`l \leftarrow p(l), u \leftarrow 2 - p(l)` (Algorithm 1 and
  section 4 of the paper).

  Deviations: none; with the defaults and ten steps the raw table of the
  authors' code is reproduced, with `steps=5, cushion=0.02, safety=0.02` the one
  that nanochat and modded-nanogpt use.

  Args:
    steps: number of polynomials, 1 or more.
    lower: smallest singular value aimed at, relative to the largest; in (0, 1).
    cushion: narrowest relative interval fitted; in [0, 1).
    safety: all but the last polynomial are applied to `x / (1 + safety)`; 0 or
      more.

  Returns:
    `steps` triples `(a, b, c)` of floats, to be applied in order.

  Raises:
    ValueError: if an argument lies outside its range.

  Example:
    >>> [round(x, 4) for x in polar_express_coefficients(3)[2]]
    [3.9487, -2.9089, 0.5518]

  References:
    Amsel et al., `The Polar Express <https://arxiv.org/abs/2505.16932>`_, 2025.
  """
  require(steps >= 1, 'steps', steps, 'at least 1')
  require(0 < lower < 1, 'lower', lower, 'a number in (0, 1)')
  require(0 <= cushion < 1, 'cushion', cushion, 'a number in [0, 1)')
  require(safety >= 0, 'safety', safety, '0 or more')
  low, high, table = lower, 1.0, []
  for step in range(steps):
    triple = np.array(_best_quintic(max(low, cushion * high), high))
    value = lambda x, p: p[0] * x + p[1] * x**3 + p[2] * x**5
    if cushion * high > low:
      triple *= 2 / (value(low, triple) + value(high, triple))
    if step < steps - 1:
      triple /= (1 + safety) ** np.array([1, 3, 5])
    table.append(tuple(float(x) for x in triple))
    low = value(low, triple)
    high = 2 - low
  return tuple(table)


def _guarded_polar_express(steps: int = 8) -> Coefficients:
  """The authors' table: the safety factor goes in after the recursion."""
  *first, last = polar_express_coefficients(steps)
  f = _SAFETY
  return (*((a / f, b / f**3, c / f**5) for a, b, c in first), last)


NEWTON_SCHULZ_COEFFICIENTS: dict[str, Coefficients] = {
  # Converges to one from everywhere in (0, 1], slowly.
  'classic': ((15 / 8, -10 / 8, 3 / 8),),
  # Steepest at zero, oscillates in [0.68, 1.13]; the Muon post, Moonlight.
  'keller': ((3.4445, -4.7750, 2.0315),) * 5,
  # Jiacheng You's five, tuned together.
  'you': (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
  ),
  # Article 10922: found by gradient descent over simulated spectra.
  'su': (
    (4.6182, -12.9582, 9.3299),
    (3.8496, -7.9585, 4.3052),
    (3.5204, -7.2918, 4.0606),
    (3.2067, -6.8243, 4.2802),
    (3.2978, -5.7848, 3.8917),
  ),
  'polar_express': _guarded_polar_express(),
}


def resolve_coefficients(
  coefficients: str | Coefficients, steps: int | jax.Array | None
) -> tuple[np.ndarray, int | jax.Array]:
  """Turns a name or a list of triples into a table [k, 3] and a step count."""
  if isinstance(coefficients, str):
    require_one_of('coefficients', coefficients, [*NEWTON_SCHULZ_COEFFICIENTS])
    coefficients = NEWTON_SCHULZ_COEFFICIENTS[coefficients]
  try:
    table = np.asarray(coefficients, np.float64)
  except (TypeError, ValueError):  # Triples and pairs mixed, or text.
    table = np.empty(0)
  require(
    table.ndim == 2 and table.shape[1:] == (3,) and len(table) >= 1,
    'coefficients',
    coefficients,
    'a name or a nonempty sequence of triples (a, b, c)',
  )
  if steps is None:
    steps = len(table)
  if not isinstance(steps, jax.Array):  # A traced one is taken as it is.
    whole = isinstance(steps, int | np.integer) and steps >= 1
    require(whole, 'steps', steps, 'an integer of at least 1')
    steps = int(steps)
  return table, steps


def _largest(x: jax.Array) -> jax.Array:
  """The largest entry of each matrix, one for zero, to be divided by."""
  largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0)
  return jnp.where(largest > 0, largest, 1)


def divide_by_largest(x: jax.Array) -> jax.Array:
  """Scales each matrix to entries of at most one, zero to zero."""
  return x / _largest(x)


def _divide(x: jax.Array, norm: jax.Array) -> jax.Array:
  return x / jnp.where(norm > 0, norm, 1)


def _normalize(x: jax.Array) -> jax.Array:
  """Scales each matrix to Frobenius norm one, zero to zero, at any scale."""
  largest = _largest(x)
  # Squares of x itself would overflow or underflow.
  norm = jnp.linalg.norm(x / largest, axis=(-2, -1), keepdims=True)
  return _divide(x, largest * norm)


def _gram(x: jax.Array) -> jax.Array:
  """Inner products of the shorter side, [..., m, m]; no transpose is made."""
  if x.shape[-2] <= x.shape[-1]:
    return jnp.einsum('...ik,...jk->...ij', x, x.conj())
  return jnp.einsum('...ki,...kj->...ij', x.conj(), x)


def _times(x: jax.Array, polynomial: jax.Array) -> jax.Array:
  """Multiplies the shorter side by a polynomial of its Gram matrix."""
  if x.shape[-2] <= x.shape[-1]:
    return polynomial @ x
  return x @ polynomial


def _precondition(x: jax.Array, kind: str) -> jax.Array:
  """Starts the iteration: singular values of at most one, and not tiny."""
  x = _normalize(x)
  if kind == 'frobenius':
    return x
  if kind == 'spectral':
    return _divide(x, jnp.linalg.norm(x, 2, axis=(-2, -1), keepdims=True))
  gram = _gram(x)
  if kind == 'schatten':  # The fourth root of tr((X X^T)^2).
    norm = jnp.linalg.norm(gram, axis=(-2, -1), keepdims=True)
    return _divide(x, jnp.sqrt(norm))
  rows = jnp.sqrt(jnp.sum(jnp.abs(gram), axis=-1))
  wide = x.shape[-2] <= x.shape[-1]
  return _divide(x, rows[..., :, None] if wide else rows[..., None, :])


def _polynomial(gram: jax.Array, triple: Triple | jax.Array) -> jax.Array:
  """The polynomial a I + b A + c A^2 of A = `gram`."""
  a, b, c = triple
  identity = jnp.eye(gram.shape[-1], dtype=gram.dtype)
  return a * identity + b * gram + c * (gram @ gram)


def _standard(x: jax.Array, triples: Sequence[Triple]) -> jax.Array:
  """The iteration as it stands in the module's docstring."""
  for triple in triples:
    x = _times(x, _polynomial(_gram(x), triple))
  return x


def _by_gram(x: jax.Array, triples: Sequence[Triple]) -> jax.Array:
  r"""The same polynomials by way of the Gram matrix, [m, m] products only.

  With :math:`S_i` the polynomial of step i at :math:`R_i`, all of them commute:
  :math:`R_{i+1} = S_i R_i S_i` and :math:`X_k = S_{k-1} \cdots S_0 X_0`. Small
  eigenvalues of `R` carry its rounding, which each step magnifies by a^2, so
  that it starts anew from X after every third.
  """
  for start in range(0, len(triples), _SEGMENT):
    first, *rest = triples[start : start + _SEGMENT]
    gram = _gram(x)
    product = factor = _polynomial(gram, first)
    for triple in rest:
      gram = factor @ (gram @ factor)
      factor = _polynomial(gram, triple)
      product = product @ factor
    x = _times(x, product)
  return x


@functools.partial(jax.jit, static_argnums=(1, 2))
def _iterate(
  x: jax.Array, triples: tuple[Triple, ...], by_gram: bool
) -> jax.Array:
  """All steps, compiled once a shape where nothing around them is."""
  iterate = functools.partial(
    _by_gram if by_gram else _standard, triples=triples
  )
  if x.ndim > 2 or x.size < SMALL:
    return iterate(x)
  # A zero matrix is there already. What counts is that a branch has a memory of
  # its own: XLA schedules the matrices of a model breadth first on CPU and
  # would hold the temporaries of all of them.
  return jax.lax.cond(jnp.linalg.norm(x) > 0, iterate, lambda x: x, x)


def _traced_steps(
  x: jax.Array, table: np.ndarray, steps: jax.Array
) -> jax.Array:
  """The standard iteration for a number of steps known at run time."""
  table = jnp.asarray(table, jnp.finfo(x.dtype).dtype)

  def iterate(i, x):
    # dynamic_index clamps: past the end of the table the last triple repeats.
    triple = jax.lax.dynamic_index_in_dim(table, i, keepdims=False)
    return _times(x, _polynomial(_gram(x), triple))

  return jax.lax.fori_loop(0, steps, iterate, x)


def newton_schulz(
  x: ArrayLike,
  *,
  coefficients: str | Coefficients = 'polar_express',
  steps: int | jax.Array | None = None,
  dtype: jax.typing.DTypeLike | None = None,
  preconditioning: str = 'frobenius',
  gram: bool | None = None,
) -> jax.Array:
  r"""Approximates the matrix sign :math:`U V^T` by quintic iterations.

  The iteration of the module's docstring from :math:`X / \|X\|_F`, on the
  shorter side: :math:`4 m^2 n + 2 m^3` floating point operations a step for
  `m <= n`, five steps :math:`20 m^2 n + 10 m^3`. By way of the Gram matrix
  (`gram`) the same polynomials take :math:`8 m^2 n + 28 m^3`, less from
  `n = 1.5 m` on.

  Deviations: the norm is taken after division by the largest entry instead of
  with an absolute epsilon, so the result does not depend on the scale of `x`,
  from 1e-30 to 1e37 in float32 (the published codes collapse once the norm
  falls near their `eps`), and zero gives zero. The Polar Express code also
  divides the start by 1.01; its coefficients hold that margin already and it is
  not applied twice. The Gram form restarts after three steps instead of two,
  which is more accurate for the same products.

  Args:
    x: matrices [..., m, n], real or complex, of any scale.
    coefficients: a key of `NEWTON_SCHULZ_COEFFICIENTS`, or triples `(a, b, c)`,
      one per step.
    steps: the first `steps` triples are used, the last is repeated when there
      are fewer. `None`: as many as there are triples. May be a traced integer.
    dtype: dtype of the products. `None`: that of `x`, float32 for integers.
      The norm is taken in float32 or better whatever the dtype.
    preconditioning: what the start is divided by: "frobenius" its norm;
      "schatten" the Schatten-4 norm, closer to the largest singular value, for
      one more product [m, n]; "spectral" the largest singular value, by SVD;
      "aol" the root of the row sums of :math:`|X X^T|`, row by row, which turns
      the singular vectors a little and brings the values closer to one.
    gram: whether to go by way of the Gram matrix; `None`: where `n > 1.5 m`.
      Traced `steps` always take the standard way.

  Returns:
    Array [..., m, n] in `dtype`, singular values near one.

  Raises:
    ValueError: if `x` has fewer than two axes, a name is unknown, the list is
      empty or `steps` is below one.

  Example:
    >>> x = jnp.array([[3e-20, 0.0, 0.0], [0.0, -2e-20, 0.0]])
    >>> jnp.round(newton_schulz(x), 3).tolist()
    [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]

  References:
    Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024.
    Amsel et al., `The Polar Express <https://arxiv.org/abs/2505.16932>`_, 2025.
    Grishina et al., `Chebyshev-type polynomials
    <https://arxiv.org/abs/2506.10935>`_, 2025 (Schatten-4 start).
    Boissin et al., `Turbo-Muon <https://arxiv.org/abs/2512.04632>`_, 2025.
    Dao-AILab, `Gram Newton-Schulz
    <https://github.com/Dao-AILab/gram-newton-schulz>`_, 2026.
  """
  x = jnp.asarray(x)
  require_rank('x', x, 2, at_least=True)
  table, steps = resolve_coefficients(coefficients, steps)
  require_one_of('preconditioning', preconditioning, PRECONDITIONING)
  if dtype is None:
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    dtype = x.dtype if inexact else jnp.float32
  dtype = jnp.dtype(dtype)
  wide = jnp.promote_types(jnp.promote_types(x.dtype, dtype), jnp.float32)
  x = _precondition(x.astype(wide), preconditioning).astype(dtype)
  if isinstance(steps, jax.Array):
    return _traced_steps(x, table, steps)
  short, long = sorted(x.shape[-2:])
  by_gram = long > 1.5 * short if gram is None else bool(gram)
  rows = [table[min(i, len(table) - 1)] for i in range(steps)]
  return _iterate(x, tuple(tuple(row.tolist()) for row in rows), by_gram)


def msign(x: ArrayLike) -> jax.Array:
  r"""The matrix sign :math:`U V^T` by SVD, the reference for the iterations.

  Singular values below `eps * max(m, n)` times the largest count as zero and
  stay zero, so that the result is :math:`X ((X^T X)^{+})^{1/2}` for deficient
  rank and zero for zero.

  Args:
    x: matrices [..., m, n], real or complex.

  Returns:
    Array [..., m, n], every singular value zero or one; half precision is
    computed and returned in float32.

  Raises:
    ValueError: if `x` has fewer than two axes.

  Example:
    >>> jnp.round(msign(jnp.array([[0.0, 2.0], [-5.0, 0.0]])), 3).tolist()
    [[0.0, 1.0], [-1.0, 0.0]]
  """
  x = jnp.asarray(x)
  require_rank('x', x, 2, at_least=True)
  x = _normalize(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
  u, s, vh = jnp.linalg.svd(x, full_matrices=False)
  cut = jnp.finfo(x.dtype).eps * max(x.shape[-2:]) * s[..., :1]
  return (u * ((s > cut) & (s > 0))[..., None, :]) @ vh
