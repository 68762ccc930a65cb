r"""Matching pursuit over a codebook of noise: several atoms for one step.

The first atom is the best of the codebook. Every further one is mixed into the
sum `z` so far, on the grid of weights :math:`\gamma = c / 2^C`,

.. math::
  z \leftarrow N\bigl(\sqrt\gamma\, z + \sqrt{1 - \gamma}\, z_k\bigr), \qquad
  N(x) = \sqrt D\, x / |x|,

with the `k` and the `c` that make the product with the residual largest; where
none makes it larger the pursuit stops for good.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ..checks import require
from .codebook import Codebook, first_largest


def check_ladder(atoms: int, coefficient_bits: int) -> None:
  """Refuses numbers of atoms or bits that no ladder has."""
  require(atoms >= 1, 'atoms', atoms, '1 or more')
  good = 1 <= coefficient_bits <= 8
  require(good, 'coefficient_bits', coefficient_bits, '1 to 8')


def _unit(x: jax.Array) -> jax.Array:
  """Of mean square 1; zero stays."""
  square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
  return x * lax.rsqrt(jnp.where(square > 0, square, 1.0))


def _mixed(z: jax.Array, atom: jax.Array, gamma: jax.Array) -> jax.Array:
  """One rung: `z` [B, D] and an atom [B, D] by weights [B]; 1 leaves `z`."""
  root = lambda x: jnp.sqrt(x)[:, None]
  mixed = _unit(root(gamma) * z + root(1.0 - gamma) * atom)
  return jnp.where(gamma[:, None] < 1.0, mixed, z)


def _weight(codes: jax.Array, coefficient_bits: int) -> jax.Array:
  """What a coefficient's code says: 0 that there is no atom."""
  gamma = codes.astype(jnp.float32) / 2**coefficient_bits
  return jnp.where(codes > 0, gamma, 1.0)


def pursue(
  codebook: Codebook,
  residual: jax.Array,
  t: jax.Array,
  *,
  atoms: int,
  coefficient_bits: int = 1,
) -> tuple[jax.Array, jax.Array]:
  r"""Chooses atoms and weights for a residual, exactly.

  With :math:`a_k = \langle z_k, r \rangle`, :math:`g_k = \langle z, z_k
  \rangle` and :math:`n_k = |z_k|^2` every candidate has the product

  .. math::
    \frac{\sqrt\gamma\, \langle z, r \rangle + \sqrt{1 - \gamma}\, a_k}
    {\sqrt{(\gamma |z|^2 + 2 \sqrt{\gamma (1 - \gamma)}\, g_k +
    (1 - \gamma) n_k) / D}},

  so that one pass over the codebook serves all weights and no candidate is ever
  built.

  Deviations: the authors' grid is `c / (2^C - 1)`, whose last weight, 1, adds
  nothing: with one bit it has no other. Sums are normalised by their mean
  square, not by the deviation from their mean.

  Args:
    codebook: of dimension D.
    residual: [B, D], what the noise should point along.
    t: the timestep.
    atoms: `M`, 1 or more.
    coefficient_bits: `C`, 1 to 8.

  Returns:
    Indices and codes of coefficients, int32 [B, M] each. The first code is 0;
    a later one is 0, like its index, from where the pursuit stopped.

  Raises:
    ValueError: for `atoms` or `coefficient_bits` out of range.

  Example:
    >>> codebook = Codebook(256, 64)
    >>> residual = codebook.atoms(jnp.array([[7, 9]]), 1).sum(1)
    >>> indices, codes = pursue(codebook, residual, 1, atoms=2)
    >>> print(jnp.sort(indices), codes)
    [[7 9]] [[0 1]]

  References:
    Ohayon et al., `arXiv 2502.01189 <https://arxiv.org/abs/2502.01189>`_,
    2025, section on a larger bit rate.
  """
  check_ladder(atoms, coefficient_bits)
  residual = jnp.asarray(residual, jnp.float32)
  first = codebook.best(residual, t)
  if atoms == 1:
    return first[:, None], jnp.zeros_like(first)[:, None]
  # Squares serve every rung, and cost a pass over the codebook.
  squares = codebook.squares(t)

  def rung(carry, _):
    z, alive = carry
    index, code, gain = _best_rung(
      codebook, residual, z, squares, t, coefficient_bits
    )
    alive = alive & gain
    index, code = (jnp.where(alive, x, 0) for x in (index, code))
    gamma = _weight(code, coefficient_bits)
    z = _mixed(z, codebook.atoms(index, t), gamma)
    return (z, alive), (index, code)

  start = (codebook.atoms(first, t), first >= 0)
  _, (indices, codes) = lax.scan(rung, start, length=atoms - 1)
  return (
    jnp.concatenate([first[:, None], indices.T], axis=1),
    jnp.concatenate([jnp.zeros_like(first)[:, None], codes.T], axis=1),
  )


def _best_rung(codebook, residual, z, squares, t, coefficient_bits):
  """Index, code and whether they gain, [B] each: the best next atom of `z`."""
  count = len(z)
  products = codebook.products(jnp.concatenate([residual, z]), t)
  along, shared = products[:count], products[count:]
  now = jnp.sum(z * residual, axis=-1)
  square = jnp.sum(z * z, axis=-1)[:, None]

  def score(code):
    gamma = _weight(code, coefficient_bits)
    old, new = jnp.sqrt(gamma), jnp.sqrt(1.0 - gamma)
    norm = gamma * square + 2 * old * new * shared + new**2 * squares
    # An atom may cancel the sum, but for rounding.
    scale = lax.rsqrt(jnp.maximum(norm / codebook.dim, 1e-6))
    scores = (old * now[:, None] + new * along) * scale
    return jnp.max(scores, axis=1), first_largest(scores)

  # One weight at a time: [B, size] is the largest array there is.
  codes = jnp.arange(1, 2**coefficient_bits, dtype=jnp.int32)
  scores, indices = lax.map(score, codes)
  which = jnp.argmax(scores, axis=0)
  pick = lambda x: jnp.take_along_axis(x, which[None], axis=0)[0]
  return pick(indices), codes[which], pick(scores) > now


def pursued(
  codebook: Codebook,
  indices: jax.Array,
  coefficients: jax.Array,
  t: jax.Array,
  *,
  coefficient_bits: int = 1,
) -> jax.Array:
  """The noise that indices and codes of coefficients stand for.

  Args:
    codebook: that of `pursue`.
    indices: int32 [B, M].
    coefficients: int32 [B, M] in 0 .. 2^C - 1; the first is not read.
    t: the timestep.
    coefficient_bits: `C`.

  Returns:
    float32 [B, D]; of mean square 1, but for a single atom, which is as drawn.

  Example:
    >>> codebook = Codebook(256, 64)
    >>> indices, codes = jnp.array([[7, 9, 0]]), jnp.array([[0, 1, 0]])
    >>> z = pursued(codebook, indices, codes, 1)
    >>> z.shape, f'{float(jnp.mean(z**2)):.3f}'
    ((1, 64), '1.000')
  """

  def rung(carry, one):
    index, code = one
    z, alive = carry
    alive = alive & (code > 0)
    gamma = _weight(jnp.where(alive, code, 0), coefficient_bits)
    return (_mixed(z, codebook.atoms(index, t), gamma), alive), None

  first = codebook.atoms(indices[:, 0], t)
  start = (first, indices[:, 0] >= 0)
  return lax.scan(rung, start, (indices[:, 1:].T, coefficients[:, 1:].T))[0][0]
