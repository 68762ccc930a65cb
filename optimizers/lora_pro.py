r"""LoRA-Pro: the adapters take the steps of full fine-tuning.

Shapes: a pair `a` [..., in, r], `b` [..., r, out] adapts the weight
:math:`W_0 + s A B` of `y = x @ w`, see `kexue.lowrank.lora_gradient`.

References:
  Su, `Aligning with full fine-tuning, II
  <https://kexue.fm/archives/10266>`_, 2024;
  Wang et al., `LoRA-Pro <https://arxiv.org/abs/2407.18242>`_, 2024.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..checks import require, require_one_of
from ..lowrank.lora_gradient import (
  FREE_CHOICES,
  lora_equivalent_gradient,
  lora_pro_gradient,
)

_VARIANTS = ('efficient', 'full')


class LoraProState(NamedTuple):
  """State of the inner transformation."""

  inner_state: Any


def _find_pairs(params: Any, names: tuple[str, str]) -> list[tuple[int, int]]:
  """Positions in `jax.tree.leaves(params)` of siblings with the two names."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  position = {}
  for i, (path, leaf) in enumerate(leaves):
    if path:
      last = path[-1]
      name = getattr(last, 'key', getattr(last, 'name', None))
      position[path[:-1], name] = i, jnp.shape(leaf)
  pairs = []
  for (parent, name), (i, a) in position.items():
    if name == names[0] and (parent, names[1]) in position:
      j, b = position[parent, names[1]]
      require(
        min(len(a), len(b)) >= 2 and a[:-2] == b[:-2] and a[-1] == b[-2],
        f'params{jax.tree_util.keystr(parent)}',
        {names[0]: a, names[1]: b},
        'shapes [..., in, r] and [..., r, out]',
      )
      pairs.append((i, j))
  require(
    bool(pairs or not leaves),
    'params',
    'no pair',
    f'a mapping with the keys {names[0]!r} and {names[1]!r}',
  )
  return pairs


def _map_pairs(
  function: Callable,
  pairs: list[tuple[int, int]],
  params: optax.Params,
  tree: Any,
) -> Any:
  """Puts `function(a, b, x, y)` for the two leaves `x, y` of each pair."""
  weights, treedef = jax.tree.flatten(params)
  leaves = treedef.flatten_up_to(tree)
  for i, j in pairs:
    leaves[i], leaves[j] = function(
      weights[i], weights[j], leaves[i], leaves[j]
    )
  return treedef.unflatten(leaves)


def lora_pro(
  inner: optax.GradientTransformation,
  *,
  scale: float | jax.Array,
  pairs: tuple[str, str] = ('a', 'b'),
  weight_decay: float | jax.Array = 0.0,
  variant: str = 'efficient',
  free: str = 'sylvester',
  damping: float | jax.Array = 1e-6,
) -> optax.GradientTransformationExtraArgs:
  r"""Aligns the steps of low-rank adapters with those of full fine-tuning.

  The gradients of each pair become the steps :math:`H_A, H_B` of
  `lora_pro_gradient`, which move the weight as close to its full gradient as
  the pair can. They are meant for SGD; Adam comes in by one of two variants.

  "efficient": the aligned gradients go to `inner` in place of the gradients.
  The state is as small as that of plain LoRA.

  "full", the paper's: the part of the full gradient that the pair reaches,
  :math:`\tilde G = s (H_A B + A H_B)`, goes to `inner` as a matrix [in, out],
  and what comes back, :math:`U`, is aligned in place of `G`, from
  :math:`s U B^T` and :math:`s A^T U`. For the first alignment :math:`X = 0`,
  which :math:`\tilde G` does not depend on. The moments of `inner` are then as
  large as in full fine-tuning: only the memory of parameters and gradients is
  saved. `inner` sees the matrix at the place of `a` and nothing at that of `b`,
  and the merged :math:`s A B` as its parameter, both in float32 or better.

  Weight decay is decoupled and acts on the product: :math:`\lambda A / 2` and
  :math:`\lambda B / 2` are added to the steps, so that :math:`s A B` shrinks by
  :math:`(1 - \eta \lambda / 2)^2 \approx 1 - \eta \lambda` however it is shared
  out between its factors. The frozen weight is not seen and does not decay: the
  decay pulls the model to :math:`W_0`, not to zero.

  Deviations: betas and scale are the caller's, and the damping is relative, see
  `lora_pro_gradient`. The authors' scripts run without weight decay; AdamW's,
  on `a` and `b` apart, would shrink the product twice as fast.

  Args:
    inner: makes the direction, such as `optax.scale_by_adam()`; learning rate
      and its sign come after, outside. Leaves that are in no pair go to it
      unchanged.
    scale: `s` of the weight, above 0.
    pairs: names of the two leaves, siblings in a mapping or a NamedTuple, in
      the order in which they are multiplied.
    weight_decay: :math:`\lambda`, 0 or more, of the pairs alone.
    variant: "efficient" or "full".
    free: see `lora_pro_gradient`.
    damping: see `lora_pro_gradient`.

  Returns:
    `optax.GradientTransformationExtraArgs` with state `LoraProState`.

  Raises:
    ValueError: for an argument outside its range, an update without parameters,
      parameters without a pair, or a pair whose shapes do not fit.

  Example:
    >>> params = {'dense': {'a': jnp.ones((4, 2)), 'b': jnp.zeros((2, 3))}}
    >>> tx = optax.chain(
    ...   lora_pro(optax.scale_by_adam(), scale=2.0, weight_decay=0.1),
    ...   optax.scale_by_learning_rate(1e-3),
    ... )
    >>> state = tx.init(params)
    >>> updates, state = tx.update(params, state, params)
    >>> params = optax.apply_updates(params, updates)

  References:
    Wang et al., `LoRA-Pro <https://arxiv.org/abs/2407.18242>`_, 2024.
    Su, `article 10266 <https://kexue.fm/archives/10266>`_, 2024.
  """
  require_one_of('variant', variant, _VARIANTS)
  require_one_of('free', free, FREE_CHOICES)
  require(len(pairs) == 2 and pairs[0] != pairs[1], 'pairs', pairs, 'two names')
  if isinstance(scale, int | float):
    require(scale > 0, 'scale', scale, 'a number above 0')
  for name, value in [('weight_decay', weight_decay), ('damping', damping)]:
    if isinstance(value, int | float):
      require(value >= 0, name, value, '0 or more')
  inner = optax.with_extra_args_support(inner)
  aligned = partial(lora_pro_gradient, scale=scale, damping=damping)
  equivalent = partial(lora_equivalent_gradient, scale=scale)

  def align(a, b, grad_a, grad_b):
    step_a, step_b = aligned(a, b, grad_a, grad_b, free=free)
    return step_a.astype(grad_a.dtype), step_b.astype(grad_b.dtype)

  def merge(a, b, *_):
    # The product as the step by half of each factor.
    return equivalent(a, b, a / 2, b / 2), optax.MaskedNode()

  def to_matrix(a, b, grad_a, grad_b):
    steps = aligned(a, b, grad_a, grad_b, free='zero')
    return equivalent(a, b, *steps), optax.MaskedNode()

  def from_matrix(a, b, u, _):
    grad_a = scale * jnp.matmul(u, b.mT, precision='highest')
    grad_b = scale * jnp.matmul(a.mT, u, precision='highest')
    step_a, step_b = aligned(a, b, grad_a, grad_b, free=free)
    return step_a.astype(a.dtype), step_b.astype(b.dtype)

  def decay(a, b, step_a, step_b):
    half = weight_decay / 2
    decayed_a, decayed_b = step_a + half * a, step_b + half * b
    return decayed_a.astype(step_a.dtype), decayed_b.astype(step_b.dtype)

  def init(params):
    found = _find_pairs(params, pairs)
    if variant == 'full':
      params = _map_pairs(merge, found, params, params)
    return LoraProState(inner.init(params))

  def update(updates, state, params=None, **extra_args):
    require(params is not None, 'params', None, 'parameters that hold pairs')
    each = partial(_map_pairs, pairs=_find_pairs(params, pairs), params=params)
    if variant == 'full':
      updates, inner_state = inner.update(
        each(to_matrix, tree=updates),
        state.inner_state,
        each(merge, tree=params),
        **extra_args,
      )
      updates = each(from_matrix, tree=updates)
    else:
      updates, inner_state = inner.update(
        each(align, tree=updates), state.inner_state, params, **extra_args
      )
    return each(decay, tree=updates), LoraProState(inner_state)

  return optax.GradientTransformationExtraArgs(init, update)
