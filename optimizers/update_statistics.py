r"""What an optimizer does to the weights, measured where it happens.

Wrapped around a transformation, for each label of leaves and every step:

- `update_rms`, `weight_rms`: root mean squares of the update that leaves, and
  of the weights that it will be added to;
- `spectral_norm`: the largest :math:`\|W\|_2` of the label's matrices, from
  below, by a power iteration that goes on from step to step;
- `orthogonality_residual`: for an update `U` [m, n] with :math:`r = \min(m, n)`
  scaled to :math:`\|U\|_F^2 = r`, on the smaller side, averaged over matrices,

  .. math:: \|U^T U - I\|_F / \sqrt{r},

  0 if all singular values are equal, as those of the matrix sign are,
  :math:`\sqrt{r / k - 1}` for rank `k`, 1 for zero; no learning rate or shape
  factor matters;
- `clip_fraction`: the fraction of steps so far in which the norm of the
  gradient that came in was above a bound.

References:
  Liu et al., `Muon is Scalable for LLM Training
  <https://arxiv.org/abs/2502.16982>`_, 2025;
  Su, `Why is the default norm for gradient clipping 1?
  <https://kexue.fm/archives/10657>`_, 2025.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..checks import require
from .matrices import (
  DimensionNumbers,
  Numbers,
  matrix_labels,
  numbers_by_path,
  split_fused,
  to_matrices,
)
from .spectral_decay import power_iteration, top_vectors, unit, wide

Statistics = dict[str, dict[str, jax.Array]]


class UpdateStatisticsState(NamedTuple):
  """The inner state, steps taken, top singular vectors, and the statistics."""

  inner_state: Any
  count: jax.Array
  v: list[jax.Array]
  statistics: Statistics


class _Kind(NamedTuple):
  """The label of a leaf, and its dimension numbers if it is a matrix."""

  label: str
  numbers: Numbers | None


def _kinds(
  params: Any, labels: Any | None, dimension_numbers: DimensionNumbers | None
) -> list[_Kind]:
  """The kind of each leaf in the order of `jax.tree.leaves(params)`."""
  is_matrix = matrix_labels(params, dimension_numbers)
  labels = labels(params) if callable(labels) else labels
  labels = is_matrix if labels is None else labels
  # By path: under `optax.partition` leaves of other labels are gone.
  by_path = dict(jax.tree_util.tree_leaves_with_path(labels))
  numbers = numbers_by_path(params, dimension_numbers)
  kinds = []
  for path, kind in jax.tree_util.tree_leaves_with_path(is_matrix):
    name = jax.tree_util.keystr(path)
    require(path in by_path, 'labels', 'no entry', f'one for {name}')
    kinds.append(
      _Kind(by_path[path], numbers[path] if kind == 'muon' else None)
    )
  return kinds


def _each(
  function: Callable, kinds: list[_Kind], values: Iterable[jax.Array]
) -> dict[str, jax.Array]:
  """Applies a function to the list of the values of each label."""
  groups: dict[str, list[jax.Array]] = {}
  for kind, value in zip(kinds, values, strict=True):
    groups.setdefault(kind.label, []).append(value)
  return {label: function(group) for label, group in groups.items()}


def _norm(leaves: list[jax.Array]) -> jax.Array:
  return jnp.sqrt(sum(jnp.sum(jnp.square(wide(x))) for x in leaves))


def _rms(leaves: list[jax.Array]) -> jax.Array:
  return _norm(leaves) / math.sqrt(max(1, sum(x.size for x in leaves)))


def _largest(values: list[jax.Array]) -> jax.Array:
  return jnp.max(jnp.concatenate(values))


def _mean(values: list[jax.Array]) -> jax.Array:
  return jnp.mean(jnp.concatenate(values))


def _stretch(w: jax.Array, v: jax.Array) -> jax.Array:
  """Lengths [batch] of W v."""
  return jnp.linalg.norm(jnp.einsum('bmn,bn->bm', w, v), axis=-1)


def _residual(u: jax.Array) -> jax.Array:
  """How far matrices [batch, m, n] are from orthogonal, [batch]."""
  smaller = min(u.shape[-2:])
  u = math.sqrt(smaller) * unit(u.reshape(len(u), -1)).reshape(u.shape)
  gram = u @ u.mT if u.shape[-2] == smaller else u.mT @ u
  error = jnp.linalg.norm(gram - jnp.eye(smaller), axis=(-2, -1))
  return error / math.sqrt(smaller)


def with_update_statistics(
  inner: optax.GradientTransformation,
  *,
  labels: Any | None = None,
  dimension_numbers: DimensionNumbers | None = None,
  max_norm: float | None = None,
  power_iterations: int = 1,
  key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Measures the updates of an optimizer and leaves them as they are.

  The statistics of the module's docstring, read with `update_statistics`. Their
  price is a few passes over the parameters and, for matrices, one product on
  the smaller side, about a tenth of five Newton-Schulz steps.

  What the numbers show: Muon's default scale gives its label an `update_rms` of
  0.2 times the learning rate. One far below it comes from a clip *after* the
  orthogonalisation, such as `chain(muon(0.02), clip_by_global_norm(1.0))`,
  which bounds the norm of a step that ought to grow as the root of the number
  of weights: silently the model trains at a fraction of its learning rate.
  Before Muon a clip does no harm, see `clip_fraction`.

  Deviations: the articles measure these quantities and do not say how.

  Args:
    inner: any transformation. Around a whole optimizer the update includes
      learning rate and weight decay; around `scale_by_muon` it is the direction
      alone.
    labels: pytree of strings or function of the parameters: the groups to
      measure. `None`: `matrix_labels`, "muon" and "adamw".
    dimension_numbers: see `scale_by_muon`; with `matrix_labels` they decide
      which leaves are matrices, whatever the labels.
    max_norm: counts the steps in which the gradient of a label has a larger
      norm. `None`: there is no `clip_fraction`.
    power_iterations: per step, 1 or more.
    key: of the random start, the same on all devices; `None`: a fixed one.

  Returns:
    `optax.GradientTransformationExtraArgs` with state `UpdateStatisticsState`.
    Its `statistics` are float32 scalars by label and name, zero before the
    first step. A label without matrices has no entries for them, so that
    nothing has to be skipped in a plot.

  Raises:
    ValueError: for an argument outside its range, a leaf without label, or an
      update without parameters.

  Example:
    >>> tx = with_update_statistics(optax.sgd(0.1))
    >>> params = {'kernel': 2.0 * jnp.eye(3), 'bias': jnp.ones(3)}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> for name, value in update_statistics(state)['muon'].items():
    ...   print(f'{name} {value:.3f}')
    update_rms 0.115
    weight_rms 1.155
    spectral_norm 2.000
    orthogonality_residual 0.000

  References:
    Liu et al., `Muon is Scalable for LLM Training
    <https://arxiv.org/abs/2502.16982>`_, 2025.
  """
  if isinstance(max_norm, int | float):
    require(max_norm > 0, 'max_norm', max_norm, 'a number above 0')
  if isinstance(power_iterations, int):
    require(
      power_iterations >= 1, 'power_iterations', power_iterations, '1 or more'
    )
  inner = optax.with_extra_args_support(inner)
  key = jax.random.key(0) if key is None else key

  def matrices_of(kinds, tree):
    leaves = zip(kinds, jax.tree.leaves(tree), strict=True)
    return [
      (kind, matrix)
      for kind, x in leaves
      if kind.numbers
      for matrix in split_fused(
        wide(to_matrices(x, kind.numbers)), kind.numbers
      )
    ]

  def measure(gradient, updates, params, v):
    """The statistics of one step alone, and the vectors turned."""
    kinds = _kinds(params, labels, dimension_numbers)
    pairs = matrices_of(kinds, params)
    matrices = [kind for kind, _ in pairs]
    v = [
      power_iteration(w, old, power_iterations)
      for (_, w), old in zip(pairs, v, strict=True)
    ]
    norms = [_stretch(w, x) for (_, w), x in zip(pairs, v, strict=True)]
    residuals = [_residual(u) for _, u in matrices_of(kinds, updates)]
    values = {
      'update_rms': _each(_rms, kinds, jax.tree.leaves(updates)),
      'weight_rms': _each(_rms, kinds, jax.tree.leaves(params)),
      'spectral_norm': _each(_largest, matrices, norms),
      'orthogonality_residual': _each(_mean, matrices, residuals),
    }
    if max_norm is not None:
      exceeds = lambda leaves: _norm(leaves) > max_norm
      values['clip_fraction'] = _each(exceeds, kinds, jax.tree.leaves(gradient))
    statistics = {
      kind.label: {
        name: by_label[kind.label].astype(jnp.float32)
        for name, by_label in values.items()
        if kind.label in by_label
      }
      for kind in kinds
    }
    return statistics, v

  def init(params):
    kinds = _kinds(params, labels, dimension_numbers)
    v = top_vectors([w for _, w in matrices_of(kinds, params)], key)
    shapes, _ = jax.eval_shape(measure, params, params, params, v)
    return UpdateStatisticsState(
      inner_state=inner.init(params),
      count=jnp.zeros([], jnp.int32),
      v=v,
      statistics=optax.tree.zeros_like(shapes),
    )

  def update(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError('params: got None, expected the parameters to measure')
    gradient = updates
    updates, inner_state = inner.update(
      updates, state.inner_state, params, **extra_args
    )
    count = optax.safe_increment(state.count)
    statistics, v = measure(gradient, updates, params, state.v)
    for label, values in statistics.items():
      if 'clip_fraction' in values:
        before = state.statistics[label]['clip_fraction']
        values['clip_fraction'] = (
          before + (values['clip_fraction'] - before) / count
        )
    return updates, UpdateStatisticsState(inner_state, count, v, statistics)

  return optax.GradientTransformationExtraArgs(init, update)


def _states(tree: Any) -> Iterator[UpdateStatisticsState]:
  """All states of the wrapper in a tree, those inside others too."""
  is_state = lambda x: isinstance(x, UpdateStatisticsState)
  for x in jax.tree.leaves(tree, is_leaf=is_state):
    if is_state(x):
      yield x
      yield from _states(x.inner_state)


def update_statistics(opt_state: Any) -> Statistics:
  """Finds what `with_update_statistics` measured in the last step.

  Args:
    opt_state: the state of any optimizer that has the wrapper somewhere, inside
      `optax.chain`, `optax.partition`, `optax.MultiSteps` or another.

  Returns:
    {label: {name: scalar}}, of all wrappers together.

  Raises:
    ValueError: if there is no wrapper, or if two use the same label.

  Example:
    >>> tx = optax.chain(with_update_statistics(optax.sgd(0.1)), optax.scale(2))
    >>> sorted(update_statistics(tx.init({'bias': jnp.ones(3)}))['adamw'])
    ['update_rms', 'weight_rms']
  """
  found: Statistics = {}
  states = list(_states(opt_state))
  require(bool(states), 'states of with_update_statistics', 0, '1 or more')
  for state in states:
    both = sorted(found.keys() & state.statistics.keys())
    require(not both, 'labels', both, 'each in one with_update_statistics')
    found |= state.statistics
  return found
