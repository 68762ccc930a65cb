r"""Low-rank adapters: gradients that imitate full fine-tuning.

Shapes: `...` batch, `in out` the weight, `r` rank. A layer computes `y = x @ w`
with :math:`W = W_0 + s A B`, `w` [..., in, out], `a` [..., in, r], `b`
[..., r, out]: the articles' letters with a scale. With the full gradient
:math:`G`, those of the factors are :math:`G_A = s G B^T` and
:math:`G_B = s A^T G`. Papers and PyTorch write :math:`W^T = W_0^T + s B A`
instead: their :math:`A` is our :math:`A^T`, their :math:`B` our :math:`B^T`.

References:
  Su, `Aligning with full fine-tuning, II
  <https://kexue.fm/archives/10266>`_, 2024;
  Wang et al., `LoRA-Pro <https://arxiv.org/abs/2407.18242>`_, 2024.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_rank, require_shape

FREE_CHOICES = ('sylvester', 'symmetric', 'zero')


class LoraGradient(NamedTuple):
  """Steps of the factors: `a` [..., in, r] and `b` [..., r, out].

  Example:
    >>> a, b = jnp.ones((4, 2)), jnp.ones((2, 3))
    >>> step = lora_pro_gradient(a, b, a, b, scale=1.0)
    >>> step.a.shape, step.b.shape
    ((4, 2), (2, 3))
  """

  a: jax.Array
  b: jax.Array


def _wide(*arrays: ArrayLike) -> list[jax.Array]:
  """The arrays in one type, float32 or better."""
  arrays = [jnp.asarray(x) for x in arrays]
  dtype = jnp.result_type(jnp.float32, *arrays)
  return [x.astype(dtype) for x in arrays]


def _require_pair(a: ArrayLike, b: ArrayLike) -> None:
  require_rank('a', a, 2, at_least=True)
  *batch, _, rank = jnp.shape(a)
  require_shape('b', b, (*batch, rank, None))


def _unit(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Matrices over their largest entries, and these; zero stays zero."""
  size = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
  size = jnp.where(size > 0, size, 1)
  return x / size, size


def _inverse(x: jax.Array, floor: jax.Array) -> jax.Array:
  """1 / x for x well above the floor, and smoothly 0 below it."""
  return x / jnp.where(x > 0, x**2 + floor**2, 1)


def lora_pro_gradient(
  a: ArrayLike,
  b: ArrayLike,
  grad_a: ArrayLike,
  grad_b: ArrayLike,
  *,
  scale: float | jax.Array,
  free: str = 'sylvester',
  damping: float | jax.Array = 1e-6,
) -> LoraGradient:
  r"""Steps of the factors that move the weight as close to `G` as they can.

  The minimum of :math:`\| s (H_A B + A H_B) - G \|_F` is
  :math:`\| (I - P_A) G (I - P_B) \|_F`, with the projections on the columns of
  `A` and the rows of `B`, and is reached without `G` by

  .. math::
    H_A &= s^{-2} G_A (B B^T)^{-1} + A X, \\
    H_B &= s^{-2} (A^T A)^{-1} G_B (I - P_B) - X B

  for every `X`. Whatever it is, :math:`\langle G_A, H_A \rangle +
  \langle G_B, H_B \rangle \ge 0`, so that a small step descends.

  An eigenvalue :math:`\mu` of a Gram matrix is inverted as
  :math:`\mu / (\mu^2 + \epsilon^2)`, with :math:`\epsilon` the damping times
  their mean: nothing depends on the scale of weights or gradients, and
  directions that `a` or `b` lacks stay empty. So if `b` is zero, as LoRA
  starts, then :math:`H_A = 0` and :math:`H_B = s^{-2} (A^T A)^{-1} G_B`. A `b`
  that is small and not zero makes :math:`H_A` large, like :math:`1 / |B|`,
  which is why the article recommends the orthogonal factors of LoRA-GA.

  Deviations: the authors' code adds 1e-8 to both Gram matrices, which has a
  scale; treats the first step apart; and solves for `X` by eigendecompositions
  of nonsymmetric, complex matrices, where those of the Gram matrices do.

  Args:
    a: [..., in, r], real.
    b: [..., r, out].
    grad_a: gradient of the loss in `a`, of its shape.
    grad_b: gradient of the loss in `b`, of its shape.
    scale: `s` of the weight, above 0; :math:`\alpha / r` or
      :math:`\alpha / \sqrt r`.
    free: `X`. "sylvester", as in the paper, minimises
      :math:`\|H_A - G_A\|^2 + \|H_B - G_B\|^2` by
      :math:`A^T A X + X B B^T = -s^{-2} A^T G_A (B B^T)^{-1}`; "symmetric", as
      in the article, minimises :math:`\|H_A B - A H_B\|` and does not depend on
      the sizes of the factors; "zero" leaves what both reach to `H_A`.
    damping: relative to the mean eigenvalue, 0 or more. It bounds by its
      inverse how much rounding errors of the gradients grow in directions that
      the factors barely have; half precision may want more, 0 needs full rank.

  Returns:
    `LoraGradient`, float32 or better.

  Raises:
    ValueError: if shapes do not fit, for an unknown `free`, a scale that is not
      positive or a negative damping.

  Example:
    >>> a, b, g = jnp.eye(2, 1), jnp.eye(1, 2), jnp.full((2, 2), 5.0)
    >>> step = lora_pro_gradient(a, b, g @ b.T, a.T @ g, scale=1.0)
    >>> reached = lora_equivalent_gradient(a, b, *step, scale=1.0)
    >>> print(*(f'{x:.1f}' for x in reached.ravel()))  # All but the corner.
    5.0 5.0 5.0 0.0

  References:
    Wang et al., `LoRA-Pro <https://arxiv.org/abs/2407.18242>`_, 2024.
    Su, `article 10266 <https://kexue.fm/archives/10266>`_, 2024.
  """
  _require_pair(a, b)
  require_shape('grad_a', grad_a, jnp.shape(a))
  require_shape('grad_b', grad_b, jnp.shape(b))
  require_one_of('free', free, FREE_CHOICES)
  if isinstance(scale, int | float):
    require(scale > 0, 'scale', scale, 'a number above 0')
  if isinstance(damping, int | float):
    require(damping >= 0, 'damping', damping, '0 or more')

  a, b, grad_a, grad_b = _wide(a, b, grad_a, grad_b)
  a, size_a = _unit(a)
  b, size_b = _unit(b)
  # The step of `a` goes like 1 / (scale * size_b), the gradient like its
  # inverse; between the two all is as if sizes and scale were one.
  unit_a = jnp.asarray(scale, a.dtype) * size_b
  unit_b = jnp.asarray(scale, b.dtype) * size_a
  grad_a, grad_b = grad_a / unit_a, grad_b / unit_b

  with jax.default_matmul_precision('highest'):
    _, (q, p) = jnp.linalg.eigh(jnp.stack([a.mT @ a, b @ b.mT]))
    a, grad_b = a @ q, q.mT @ grad_b
    b, grad_a = p.mT @ b, grad_a @ p
    # Both Gram matrices are diagonal now. Taken from the rotated factors, small
    # eigenvalues are as exact as the rotation, which those of `eigh` are not.
    eigen_a = jnp.sum(a**2, axis=-2)[..., :, None]
    eigen_b = jnp.sum(b**2, axis=-1)[..., None, :]
    floor_a = damping * jnp.mean(eigen_a, axis=-2, keepdims=True)
    floor_b = damping * jnp.mean(eigen_b, axis=-1, keepdims=True)
    inverse_a = _inverse(eigen_a, floor_a)
    inverse_b = _inverse(eigen_b, floor_b)
    # What both factors reach, A^T G B^+: all of it is in `step_a` so far.
    shared = (grad_b @ b.mT) * inverse_b
    step_a = grad_a * inverse_b
    step_b = inverse_a * (grad_b - shared @ b)
    if free == 'symmetric':
      x = shared * inverse_a / 2
    elif free == 'sylvester':
      larger = jnp.maximum(size_a, size_b)
      part_a, part_b = (size_a / larger) ** 2, (size_b / larger) ** 2
      x = (part_a * shared) * _inverse(
        part_a * eigen_a + part_b * eigen_b,
        part_a * floor_a + part_b * floor_b,
      )
    else:
      x = jnp.zeros_like(shared)
    step_a, step_b = (step_a - a @ x) @ p.mT, q @ (step_b + x @ b)
  return LoraGradient(step_a / unit_a, step_b / unit_b)


def lora_equivalent_gradient(
  a: ArrayLike,
  b: ArrayLike,
  step_a: ArrayLike,
  step_b: ArrayLike,
  *,
  scale: float | jax.Array,
) -> jax.Array:
  r"""What steps of the factors do to the weight, to first order.

  .. math:: \tilde G = s (H_A B + A H_B)

  Of the steps of `lora_pro_gradient` it is the part of the full gradient that
  the factors can reach, :math:`G - (I - P_A) G (I - P_B)`, for every `free`.

  Args:
    a: [..., in, r].
    b: [..., r, out].
    step_a: :math:`H_A`, of the shape of `a`.
    step_b: :math:`H_B`, of the shape of `b`.
    scale: `s` of the weight.

  Returns:
    [..., in, out], float32 or better.

  Raises:
    ValueError: if shapes do not fit.

  Example:
    >>> a, b = jnp.ones((4, 1)), jnp.ones((1, 3))
    >>> delta = lora_equivalent_gradient(a, b, a, 0 * b, scale=2.0)
    >>> delta.shape, float(delta[0, 0])
    ((4, 3), 2.0)
  """
  _require_pair(a, b)
  require_shape('step_a', step_a, jnp.shape(a))
  require_shape('step_b', step_b, jnp.shape(b))
  a, b, step_a, step_b = _wide(a, b, step_a, step_b)
  with jax.default_matmul_precision('highest'):
    return jnp.asarray(scale, a.dtype) * (step_a @ b + a @ step_b)
