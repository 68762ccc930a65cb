r"""Muon: momentum, orthogonalised (Jordan et al., 2024; Moonlight, 2025).

Shapes: a weight is read as a matrix `[in, out]` (flax kernels, `y = x @ w`) or
as a batch of them, see `matrices.py`. One step, with :math:`G` the gradient, is

.. math::
  M \leftarrow \mu M + (1 - \mu) G, \quad
  N = \mu M + (1 - \mu) G, \quad
  W \leftarrow W - \eta \, (s(W) \, \mathrm{msign}(N) + \lambda W).

Of the features that other implementations have, left out are NorMuon's second
moments of the rows, vendor kernels for symmetric products (XLA has none), and
`adaptive` of optax, which multiplies by the dual norm and so brings back the
scale of the gradient. A learning rate or weight decay for single layers is
`optax.partition` over several `muon`; Lion or any other optimizer for what is
no matrix is `others`.

References:
  Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024;
  Su, `From vectors to matrices <https://kexue.fm/archives/10592>`_ and `Why we
  chose to try Muon <https://kexue.fm/archives/10739>`_, 2024-25;
  Liu et al., `Muon is Scalable for LLM Training
  <https://arxiv.org/abs/2502.16982>`_, 2025.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ..checks import require, require_one_of
from ..mapped_axes import AxisName
from .cautious_decay import add_cautious_decay
from .matrices import (
  DimensionNumbers,
  from_matrices,
  matrix_labels,
  numbers_of_leaves,
  split_fused,
  to_matrices,
)
from .newton_schulz import (
  PRECONDITIONING,
  Coefficients,
  divide_by_largest,
  newton_schulz,
  resolve_coefficients,
)
from .stacks import (
  check_strategy,
  map_matrices,
)

# Shape factors of the update, from the sizes after reshaping to a matrix.
_SCALES: dict[str, Callable[[int, int], float]] = {
  'none': lambda fan_in, fan_out: 1.0,
  'keller': lambda fan_in, fan_out: math.sqrt(max(1.0, fan_out / fan_in)),
  'mup': lambda fan_in, fan_out: math.sqrt(fan_out / fan_in),
  'moonlight': lambda fan_in, fan_out: 0.2 * math.sqrt(max(fan_in, fan_out)),
}


def _scale(scale: str | float, fan_in: int, fan_out: int) -> float:
  """The factor of a matrix; a number is the RMS aimed at."""
  if isinstance(scale, str):
    return _SCALES[scale](fan_in, fan_out)
  return scale * math.sqrt(max(fan_in, fan_out))


class MuonState(NamedTuple):
  """State of `scale_by_muon`: steps taken, and the momentum of each leaf."""

  count: jax.Array
  momentum: optax.Updates


def scale_by_muon(
  *,
  momentum: float = 0.95,
  nesterov: bool = True,
  coefficients: str | Coefficients = 'keller',
  steps: int = 5,
  scale: str | float = 'moonlight',
  dimension_numbers: DimensionNumbers | None = None,
  msign: Callable[[jax.Array], jax.Array] | None = None,
  preconditioning: str = 'frobenius',
  ns_dtype: jax.typing.DTypeLike | None = None,
  mu_dtype: jax.typing.DTypeLike | None = None,
  strategy: str = 'auto',
  stack_size: int | None = None,
  axis_name: AxisName | None = None,
  mesh: Mesh | None = None,
  bias_correction: bool = False,
) -> optax.GradientTransformation:
  r"""Replaces each gradient by its orthogonalised momentum.

  The update of the module's docstring before learning rate and decay,
  :math:`s(W) \, \mathrm{msign}(N)`, with `newton_schulz` for the matrix sign.

  Deviations: the momentum is the exponential average of Moonlight's code,
  :math:`(1 - \mu)` times the heavy ball of the post; the matrix sign does not
  see the factor. No bias correction, as everywhere but in optax, where it
  changes the direction of the first Nesterov steps.

  Args:
    momentum: decay of the average, in [0, 1); 0.95 in the papers.
    nesterov: looks one step ahead, as in the papers.
    coefficients: see `newton_schulz`.
    steps: number of iterations, 1 or more; the first so many triples are used.
    scale: `s(W)` from the flattened matrix: "none" 1, "keller"
      sqrt(max(1, out / in)), "mup" sqrt(out / in), "moonlight"
      0.2 sqrt(max(in, out)), which gives the update AdamW's usual size, so that
      AdamW's learning rate and decay carry over. A number `r` stands for
      r sqrt(max(in, out)), an update of that RMS.
    dimension_numbers: pytree of `optax.contrib.MuonDimensionNumbers` or
      `FusedDimensionNumbers`, or a function from the parameters to it; axes
      that are neither reduction nor output are a batch: stacked layers,
      experts, heads. See the table in `matrices.py`. `None`: every leaf must be
      a matrix [in, out].
    msign: function of [m, n] and [L, m, n] that keeps shapes, in place of
      `newton_schulz` and all that is about it, such as `kexue.optimizers.msign`
      by SVD.
    preconditioning: start of `newton_schulz`.
    ns_dtype: dtype of the iterations; `None` that of the gradient.
    mu_dtype: dtype of the momentum; `None` that of the parameter.
    strategy: "loop" over matrices, "batched" over equal shapes, or "auto": loop
      on CPU, batched elsewhere.
    stack_size: matrices worked on at a time, at most, which bounds memory;
      `None`: eight.
    axis_name: mapped axis over which the matrices are shared out, whole ones to
      each device, and gathered once; the gradients must already be averaged.
    mesh: under `jax.jit` instead of `pmap` or `shard_map`, the mesh that
      `axis_name` is an axis of.
    bias_correction: divides the averages by :math:`1 - \mu^t`, as optax does.

  Returns:
    `optax.GradientTransformation` with state `MuonState`.

  Raises:
    ValueError: for an unknown name, a momentum outside [0, 1), or a leaf that
      is no matrix and has no dimension numbers.

  Example:
    >>> tx = scale_by_muon(scale='none', coefficients='polar_express', steps=8)
    >>> grads = {'w': jnp.array([[3.0, 0.0], [0.0, -2.0]])}
    >>> updates, _ = tx.update(grads, tx.init(grads))
    >>> jnp.round(updates['w'], 3).tolist()
    [[1.0, 0.0], [0.0, -1.0]]

  References:
    Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024.
    Liu et al., `Muon is Scalable for LLM Training
    <https://arxiv.org/abs/2502.16982>`_, 2025, equation 4.
  """
  if isinstance(scale, str):
    require_one_of('scale', scale, [*_SCALES])
  require_one_of('preconditioning', preconditioning, PRECONDITIONING)
  check_strategy(strategy, stack_size, axis_name, mesh)
  if isinstance(momentum, int | float):
    require(0 <= momentum < 1, 'momentum', momentum, 'a number in [0, 1)')
  resolve_coefficients(coefficients, steps)  # Refuses wrong ones at once.
  if msign is None:
    msign = lambda x: newton_schulz(
      x,
      coefficients=coefficients,
      steps=steps,
      preconditioning=preconditioning,
    )
  msign = jax.jit(msign)  # Traced once for all leaves of a shape.

  def matrices_of(leaf, numbers):
    whole = to_matrices(leaf, numbers)
    if ns_dtype is not None:  # Float16 holds neither 1e-20 nor 1e20.
      whole = divide_by_largest(whole).astype(ns_dtype)
    return split_fused(whole, numbers)

  def init(params):
    numbers_of_leaves(params, dimension_numbers)
    zeros = optax.tree.zeros_like(params, dtype=mu_dtype)
    return MuonState(jnp.zeros([], jnp.int32), zeros)

  def update(updates, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    average = lambda g, m: momentum * m + (1 - momentum) * g
    mu = jax.tree.map(average, updates, state.momentum)
    ahead = mu
    if nesterov and bias_correction:
      now, later = 1 - momentum**count, 1 - momentum ** (count + 1)
      ahead = jax.tree.map(
        lambda g, m: momentum * m / later + (1 - momentum) * g / now,
        updates,
        mu,
      )
    elif nesterov:
      ahead = jax.tree.map(average, updates, mu)

    numbers = numbers_of_leaves(updates, dimension_numbers)
    leaves, treedef = jax.tree.flatten(updates)
    parts = [
      matrices_of(a.astype(g.dtype), n)
      for a, g, n in zip(jax.tree.leaves(ahead), leaves, numbers, strict=True)
    ]
    signs = iter(
      map_matrices(
        msign,
        [*itertools.chain(*parts)],
        strategy=strategy,
        stack_size=stack_size,
        axis_name=axis_name,
        mesh=mesh,
      )
    )
    scaled = []
    for g, n, part in zip(leaves, numbers, parts, strict=True):
      mine = [
        _scale(scale, *o.shape[1:]) * o.astype(g.dtype)
        for o in itertools.islice(signs, len(part))
      ]
      scaled.append(from_matrices(jnp.concatenate(mine, 2), g.shape, n))
    mu = jax.tree.map(lambda m, old: m.astype(old.dtype), mu, state.momentum)
    return treedef.unflatten(scaled), MuonState(count, mu)

  return optax.GradientTransformation(init, update)


def muon(
  learning_rate: optax.ScalarOrSchedule,
  *,
  momentum: float = 0.95,
  nesterov: bool = True,
  coefficients: str | Coefficients = 'keller',
  steps: int = 5,
  scale: str | float = 'moonlight',
  weight_decay: float = 0.0,
  mask: Any | None = None,
  cautious: bool = False,
  max_norm: float | None = None,
  adamw_learning_rate: optax.ScalarOrSchedule | None = None,
  adamw_b1: float = 0.9,
  adamw_b2: float = 0.95,
  adamw_eps: float = 1e-8,
  adamw_eps_root: float = 0.0,
  adamw_weight_decay: float | None = None,
  others: optax.GradientTransformation | None = None,
  labels: Any | None = None,
  dimension_numbers: DimensionNumbers | None = None,
  msign: Callable[[jax.Array], jax.Array] | None = None,
  preconditioning: str = 'frobenius',
  ns_dtype: jax.typing.DTypeLike | None = None,
  mu_dtype: jax.typing.DTypeLike | None = None,
  strategy: str = 'auto',
  stack_size: int | None = None,
  axis_name: AxisName | None = None,
  mesh: Mesh | None = None,
  bias_correction: bool = False,
) -> optax.GradientTransformation:
  r"""Muon for the matrices and AdamW for the rest, as one optimizer.

  .. math:: W \leftarrow W - \eta \, (s(W) \, \mathrm{msign}(N) + \lambda W)

  with the unscaled learning rate on the decay, as in Moonlight. With the
  default scale an AdamW user keeps learning rate and weight decay.

  Deviations: none from Moonlight; from `optax.contrib.muon`: embeddings and the
  head are not orthogonalised by default, the other branch is AdamW and not
  NAdamW, and there is no bias correction.

  Args:
    learning_rate: float or schedule.
    momentum: see `scale_by_muon`, like whatever is not explained here.
    nesterov: see `scale_by_muon`.
    coefficients: see `scale_by_muon`.
    steps: see `scale_by_muon`.
    scale: see `scale_by_muon`.
    weight_decay: decoupled weight decay :math:`\lambda`, 0 or more.
    mask: pytree of booleans or function of the parameters: what decays, in
      both branches; `None`: everything.
    cautious: decays only where the update agrees, see `add_cautious_decay`, in
      both branches.
    max_norm: the gradient is first clipped to this global norm. This is the
      place for clipping: before the momentum it weighs steps against each
      other; *after* Muon, in a chain, `optax.clip_by_global_norm` would shrink
      every step, the more the wider the model (`with_update_statistics` shows
      it). `None`: no clipping, which Muon needs less than Adam.
    adamw_learning_rate: float or schedule; `None` inherits `learning_rate`.
    adamw_b1: AdamW's decay of the mean.
    adamw_b2: AdamW's decay of the square.
    adamw_eps: AdamW's epsilon.
    adamw_eps_root: AdamW's epsilon under the root.
    adamw_weight_decay: `None` inherits `weight_decay`.
    others: takes the place of AdamW with all its arguments, learning rate and
      decay included, such as `optax.lion(1e-4)`.
    labels: pytree of "muon" and "adamw", or a function of the parameters that
      makes it; `None`: `matrix_labels` with the dimension numbers.
    dimension_numbers: see `scale_by_muon` and `matrix_labels`.
    msign: see `scale_by_muon`.
    preconditioning: see `scale_by_muon`.
    ns_dtype: see `scale_by_muon`.
    mu_dtype: dtype of both momenta; `None` that of the parameter.
    strategy: see `scale_by_muon`.
    stack_size: see `scale_by_muon`.
    axis_name: see `scale_by_muon`.
    mesh: see `scale_by_muon`.
    bias_correction: see `scale_by_muon`; AdamW always corrects.

  Returns:
    `optax.GradientTransformation`. `optax.inject_hyperparams(muon)` traces its
    numbers, `steps` too; as with every optimizer it takes functions for
    schedules, so `mask`, `labels`, `msign` and `dimension_numbers` that are
    functions must be named in its `static_args`. A schedule of the weight decay
    is given that way too: `optax.inject_hyperparams(muon)(1e-3,
    weight_decay=schedule)`. Traced `steps` cost the Gram form;
    `static_args='steps'` keeps it.

  Raises:
    ValueError: for an unknown name or a value outside its range.

  Example:
    >>> params = {'kernel': jnp.eye(3), 'bias': jnp.zeros(3)}
    >>> tx = muon(0.1, weight_decay=0.01)
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> params = optax.apply_updates(params, updates)

  References:
    Liu et al., `Muon is Scalable for LLM Training
    <https://arxiv.org/abs/2502.16982>`_, 2025.
  """
  for name, value in [
    ('weight_decay', weight_decay),
    ('adamw_weight_decay', adamw_weight_decay),
  ]:
    if isinstance(value, int | float):
      require(value >= 0, name, value, '0 or more')
  if isinstance(max_norm, int | float):
    require(max_norm > 0, 'max_norm', max_norm, 'a number above 0')
  if labels is None:
    labels = lambda params: matrix_labels(params, dimension_numbers)
  if adamw_learning_rate is None:
    adamw_learning_rate = learning_rate
  if adamw_weight_decay is None:
    adamw_weight_decay = weight_decay
  decay = add_cautious_decay if cautious else optax.add_decayed_weights
  matrices = optax.chain(
    scale_by_muon(
      momentum=momentum,
      nesterov=nesterov,
      coefficients=coefficients,
      steps=steps,
      scale=scale,
      dimension_numbers=dimension_numbers,
      msign=msign,
      preconditioning=preconditioning,
      ns_dtype=ns_dtype,
      mu_dtype=mu_dtype,
      strategy=strategy,
      stack_size=stack_size,
      axis_name=axis_name,
      mesh=mesh,
      bias_correction=bias_correction,
    ),
    decay(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  )
  if others is None:
    others = optax.chain(
      optax.scale_by_adam(
        adamw_b1, adamw_b2, adamw_eps, adamw_eps_root, mu_dtype=mu_dtype
      ),
      decay(adamw_weight_decay, mask),
      optax.scale_by_learning_rate(adamw_learning_rate),
    )
  both = optax.partition({'muon': matrices, 'adamw': others}, labels)
  if max_norm is None:
    return both
  return optax.chain(optax.clip_by_global_norm(max_norm), both)
