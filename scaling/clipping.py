r"""What gradient clipping and the sign do to a step, in numbers to log.

To first order a step of learning rate :math:`\eta` along `u` lowers the loss by
:math:`\eta \langle u, g \rangle`, which is

- :math:`\eta \|g\|^2` for SGD, and with its gradient clipped to a norm
  :math:`\tau`, :math:`\eta \|g\| \min(\|g\|, \tau)`. In the long run a step
  wins less than its learning rate, so :math:`\|g\| < 1` and the customary
  :math:`\tau = 1` meets the outliers alone;
- :math:`\eta \|g\|_1 = \eta \sqrt N \|g\| \cos(\mathrm{sign}\, g, g)` for
  SignSGD, and about that for Adam: for Gaussian gradients the cosine is
  :math:`\sqrt{2 / \pi} = 0.798`, so that the decrease grows with the root of
  the number `N` of weights, and the learning rate has to fall with it.

The limiter of the same article, which bounds :math:`\langle u, g \rangle`
itself, is `kexue.optimizers.clip_by_descent`. The fraction of clipped steps so
far is kept by `kexue.optimizers.with_update_statistics(max_norm=...)`.

References:
  Su, `Why is the default norm for gradient clipping 1?
  <https://kexue.fm/archives/10657>`_, 2025.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require
from ..lowrank.arrays import unit, wide
from .rules import require_positive


class ClippingStatistics(NamedTuple):
  """Scalars of one step, see `clipping_statistics`.

  Example:
    >>> float(clipping_statistics(jnp.array([3.0, -4.0])).norm_l1)
    7.0
  """

  norm: jax.Array
  clipped: jax.Array
  cosine: jax.Array
  descent: jax.Array
  factor: jax.Array
  norm_l1: jax.Array
  sign_cosine: jax.Array


def _scaled(leaves: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
  """Leaves over a power of two, exactly, whose squares can be summed."""
  leaves = [wide(x) for x in leaves if jnp.size(x)]
  if not leaves:
    return [], jnp.ones(())
  _, size = unit(jnp.stack([jnp.max(jnp.abs(x)) for x in leaves])[None])
  size = size[0, 0]
  return [x / size for x in leaves], size


def clipping_statistics(
  gradients: Any, updates: Any | None = None, *, max_norm: ArrayLike = 1.0
) -> ClippingStatistics:
  r"""Norms, angles and predicted decrease of a step, over a whole tree.

  - `norm`, :math:`\|g\|`;
  - `clipped`, 1 if it is above `max_norm` and 0 if not: the mean over steps is
    the clip fraction;
  - `cosine`, :math:`\cos(u, g)`;
  - `descent`, :math:`\langle u, g \rangle`, the decrease of the loss per unit
    of learning rate;
  - `factor`, :math:`\min(1, \tau / \|g\|)`, what clipping multiplies by;
  - `norm_l1`, :math:`\|g\|_1`, the descent of a sign step;
  - `sign_cosine`, :math:`\|g\|_1 / (\sqrt N \|g\|)` with `N` the entries that
    are not zero: 1 if they are all of one size, 0.798 if Gaussian, small if few
    of them matter.

  Squares are summed in float32 or better and relative to the largest entry:
  neither bfloat16 nor gradients of 1e30 are a problem, though `norm` and
  `descent` may be out of the type's range.

  Deviations: the article divides by the number of all entries; where gradients
  are exactly zero, as those of unused embeddings, a sign step has none.

  Args:
    gradients: tree of arrays, as they come, averaged over devices: before
      clipping, decay and after undoing a loss scale.
    updates: tree like it, what an optimizer makes of them; `None`: the
      gradients. Those that optax is about to add point downward, and `cosine`
      and `descent` are then negative.
    max_norm: :math:`\tau`, above 0.

  Returns:
    `ClippingStatistics`: float32 scalars or better. Cosines with zero are 0.
    Where gradients are not finite, neither are the sums.

  Raises:
    ValueError: if `max_norm` is not positive, or if the trees differ.

  Example:
    >>> found = clipping_statistics({'w': jnp.array([3.0, -4.0, 0.0, 12.0])})
    >>> print(f'{found.norm} {found.norm_l1} {found.sign_cosine:.4f}')
    13.0 19.0 0.8438
    >>> print(found.clipped, f'{found.factor:.4f}', found.descent)
    1.0 0.0769 169.0

  References:
    Su, `article 10657 <https://kexue.fm/archives/10657>`_, 2025.
  """
  require_positive(max_norm=max_norm)
  updates = gradients if updates is None else updates
  shapes = [
    (jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)])
    for tree in (updates, gradients)
  ]
  require(shapes[0] == shapes[1], 'updates', *shapes)

  g, size = _scaled(jax.tree.leaves(gradients))
  u, update_size = _scaled(jax.tree.leaves(updates))
  total = lambda f, *trees: sum(map(f, *trees), start=jnp.zeros_like(size))
  length = lambda leaves: jnp.sqrt(total(lambda x: jnp.sum(x**2), leaves))
  over = lambda x, y: x / jnp.where(y != 0, y, 1)

  dot = total(lambda x, y: jnp.sum(x * y), u, g)
  absolute = total(lambda x: jnp.sum(jnp.abs(x)), g)
  # An integer: a float32 counts no further than 2^24.
  count = total(lambda x: jnp.count_nonzero(x).astype(x.dtype), g)
  norm = length(g) * size
  return ClippingStatistics(
    norm=norm,
    clipped=(norm > max_norm).astype(norm.dtype),
    cosine=over(dot, length(u) * length(g)),
    descent=dot * size * update_size,
    factor=jnp.where(norm > max_norm, max_norm / norm, 1.0),
    norm_l1=absolute * size,
    sign_cosine=over(absolute, jnp.sqrt(count) * length(g)),
  )


def sign_learning_rate(
  learning_rate: ArrayLike, old_size: ArrayLike, new_size: ArrayLike
) -> Any:
  r"""SignSGD's or Adam's learning rate for a model of another size.

  .. math:: \eta' = \eta \sqrt{N / N'}

  which keeps :math:`\eta \|g\|_1 \approx \eta \sqrt{2N / \pi}\, \|g\|`, the
  decrease of a step, for gradients of one norm: half the rate for four times
  the parameters. The argument of article 10657; a parametrisation that keeps
  activations in order, such as muP, says more, layer by layer.

  Args:
    learning_rate: at the old size.
    old_size: number of parameters, above 0.
    new_size: the same of the new model.

  Returns:
    The learning rate at the new size.

  Raises:
    ValueError: for a size that is not positive.

  Example:
    >>> sign_learning_rate(1e-3, 10**8, 4 * 10**8)
    0.0005

  References:
    Su, `article 10657 <https://kexue.fm/archives/10657>`_, 2025.
  """
  require_positive(old_size=old_size, new_size=new_size)
  return learning_rate * (old_size / new_size) ** 0.5
