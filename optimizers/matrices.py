"""Which leaves are matrices, which of their axes are in and out, and labels.

A weight of any rank is read as a batch of matrices `[batch, in, out]` by
`optax.contrib.MuonDimensionNumbers(reduction_axis, output_axis)`; the axes that
it does not name are the batch. Used by every transform that acts on matrices.

| kernel | numbers | read as |
|---|---|---|
| dense [in, out] | (0, 1), the default | one matrix |
| layers of `nn.scan` or experts [L, in, out] | (1, 2) | L matrices |
| convolution [h, w, in, out] | ((0, 1, 2), 3) | one [h w in, out] |
| heads together [D, H, K] | (0, (1, 2)) | one [D, H K] |
| heads apart [D, H, K] | (0, 2) | H of [D, K] |
| query, key, value [D, 3, H, K] | (0, (2, 3)) | three of [D, H K] |
| the same of unequal widths [D, Q + 2 K] | `FusedDimensionNumbers` | three |
| depthwise convolution, bias, gain | `None` | AdamW's |
"""

import math
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optax.contrib import MuonDimensionNumbers

from ..checks import require


class FusedDimensionNumbers(NamedTuple):
  """Numbers of a kernel that holds several matrices side by side.

  Queries, keys and values of grouped attention in one [D, Q + 2 K] kernel are
  three maps and get three matrix signs and three scales:

  >>> qkv = FusedDimensionNumbers(sizes=(64, 16, 16))
  >>> [x.shape for x in split_fused(jnp.ones((1, 32, 96)), qkv)]
  [(1, 32, 64), (1, 32, 16), (1, 32, 16)]

  Attributes:
    sizes: of the parts, along the flattened output.
    reduction_axis: as in `optax.contrib.MuonDimensionNumbers`.
    output_axis: likewise.
  """

  sizes: tuple[int, ...]
  reduction_axis: int | tuple[int, ...] = 0
  output_axis: int | tuple[int, ...] = 1


Numbers = MuonDimensionNumbers | FusedDimensionNumbers
# A pytree whose leaves are numbers or None, or a function that makes it from
# the parameters.
DimensionNumbers = Any | Callable[[Any], Any]

# Names in a path of leaves that look like matrices and are none: tables of
# embeddings, the output head, and gains or biases that `nn.scan` stacked.
_NOT_A_MATRIX = re.compile(
  r'(^|_)(wte|wpe|emb|[a-z]*embed[a-z_]*|head|logits|classifier)(_?\d+)?$'
  r'|^(bias|b|scale|gain)$'
)


def _is_numbers(x: Any) -> bool:
  """Tells leaves of a tree of dimension numbers (a NamedTuple is a tree)."""
  return x is None or isinstance(x, Numbers)


def names_of_path(path: tuple[Any, ...]) -> list[str]:
  """The names in a path in snake case, whatever the container.

  haiku joins names with slashes, PyTorch's checkpoints with dots, and flax
  makes `LMHead_0` of a class.
  """
  entries = [str(getattr(e, 'key', getattr(e, 'name', e))) for e in path]
  names = [name for e in entries for name in re.split(r'[/.~]+', e) if name]
  words = r'(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])'
  return [re.sub(words, '_', name).lower() for name in names]


def _order(
  shape: tuple[int, ...], numbers: Numbers
) -> tuple[tuple[int, ...], int, int, int]:
  """Axes in the order (batch, in, out), and the size of each group."""
  ndim = len(shape)

  def axes_of(axis):
    axes = (axis,) if np.ndim(axis) == 0 else tuple(axis)
    return tuple(a + ndim if a < 0 else a for a in axes)

  fan_in, fan_out = (
    axes_of(numbers.reduction_axis),
    axes_of(numbers.output_axis),
  )
  used = fan_in + fan_out
  require(
    bool(fan_in and fan_out)
    and len(set(used)) == len(used)
    and all(0 <= a < ndim for a in used),
    'dimension_numbers',
    numbers,
    f'distinct axes of a leaf of shape {shape}',
  )
  batch = tuple(a for a in range(ndim) if a not in used)
  size = lambda axes: math.prod(shape[a] for a in axes)
  sizes = getattr(numbers, 'sizes', (size(fan_out),))
  require(
    sum(sizes) == size(fan_out) and all(s >= 1 for s in sizes),
    'sizes',
    sizes,
    f'parts of the {size(fan_out)} outputs of a leaf of shape {shape}',
  )
  return batch + used, size(batch), size(fan_in), size(fan_out)


def to_matrices(x: jax.Array, numbers: Numbers) -> jax.Array:
  """Moves and flattens the axes of `x` to [batch, in, out].

  A convolution [height, width, in, out] is one matrix:

  >>> kernel = jnp.ones((3, 3, 16, 32))
  >>> to_matrices(kernel, MuonDimensionNumbers((0, 1, 2), 3)).shape
  (1, 144, 32)
  """
  order, batch, fan_in, fan_out = _order(x.shape, numbers)
  return x.transpose(order).reshape(batch, fan_in, fan_out)


def from_matrices(
  matrices: jax.Array, shape: tuple[int, ...], numbers: Numbers
) -> jax.Array:
  """Undoes `to_matrices` for a leaf of the given shape."""
  order, *_ = _order(shape, numbers)
  moved = matrices.reshape(tuple(shape[a] for a in order))
  return moved.transpose(tuple(order.index(a) for a in range(len(shape))))


def split_fused(matrices: jax.Array, numbers: Numbers) -> list[jax.Array]:
  """The matrices side by side in [batch, in, out]; one if nothing is fused."""
  sizes = getattr(numbers, 'sizes', matrices.shape[2:])
  return jnp.split(matrices, np.cumsum(sizes)[:-1].tolist(), axis=2)


def numbers_by_path(
  tree: Any, dimension_numbers: DimensionNumbers | None
) -> dict[Any, Numbers | None]:
  """Dimension numbers by the path of their leaf; by default those of matrices.

  By path, because under `optax.partition` the leaves of the other labels are
  gone from `tree` while their numbers are not.
  """
  if callable(dimension_numbers):
    dimension_numbers = dimension_numbers(tree)
  if dimension_numbers is None:
    default = lambda x: MuonDimensionNumbers() if jnp.ndim(x) == 2 else None
    dimension_numbers = jax.tree.map(default, tree)
  return dict(
    jax.tree_util.tree_leaves_with_path(dimension_numbers, is_leaf=_is_numbers)
  )


def numbers_of_leaves(
  tree: Any, dimension_numbers: DimensionNumbers | None
) -> list[Numbers]:
  """Dimension numbers in the order of `jax.tree.leaves(tree)`.

  Raises:
    ValueError: if a leaf has none, or they do not fit its shape.
  """
  by_path = numbers_by_path(tree, dimension_numbers)
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  for path, leaf in leaves:
    require(
      by_path.get(path) is not None,
      f'leaf {jax.tree_util.keystr(path)}',
      jnp.shape(leaf),
      'two axes or dimension numbers (optax.partition routes the others)',
    )
    _order(jnp.shape(leaf), by_path[path])
  return [by_path[path] for path, _ in leaves]


def matrix_labels(
  params: Any, dimension_numbers: DimensionNumbers | None = None
) -> Any:
  """Labels each leaf "muon" or "adamw", from its path, shape and numbers.

  With dimension numbers they alone decide: numbers mean Muon, `None` means
  AdamW, as in optax. Without them a leaf goes to Muon if it has two axes longer
  than one and its path names no embedding, output head (`head`, `logits`,
  `classifier`, `embed*`, `wte`, `wpe`), gain or bias. A leaf of three or more
  axes can be a convolution, heads or a stack of layers, which only its model
  knows: it goes to AdamW, with one warning that names such leaves.

  Args:
    params: pytree of arrays.
    dimension_numbers: pytree with the structure of `params` whose leaves are
      `optax.contrib.MuonDimensionNumbers`, `FusedDimensionNumbers` or `None`,
      or a function that makes it from `params`.

  Returns:
    Pytree of strings with the structure of `params`.

  Raises:
    ValueError: if a leaf has no entry in `dimension_numbers`.

  Example:
    >>> labels = matrix_labels({
    ...   'embedding': jnp.ones((9, 4)),
    ...   'mlp': {'kernel': jnp.ones((4, 8)), 'bias': jnp.ones(8)},
    ... })
    >>> labels['embedding'], labels['mlp']['kernel'], labels['mlp']['bias']
    ('adamw', 'muon', 'adamw')
  """
  by_path = numbers_by_path(params, dimension_numbers)
  undecided = []

  def label(path, leaf):
    name = jax.tree_util.keystr(path)
    if dimension_numbers is not None:
      require(
        path in by_path, 'dimension_numbers', 'no entry', f'one for {name}'
      )
      return 'adamw' if by_path[path] is None else 'muon'
    if any(map(_NOT_A_MATRIX.search, names_of_path(path))):
      return 'adamw'
    shape = jnp.shape(leaf)
    if len(shape) > 2:
      undecided.append(name)
    return 'muon' if len(shape) == 2 and min(shape) > 1 else 'adamw'

  labels = jax.tree_util.tree_map_with_path(label, params)
  if undecided:
    warnings.warn(
      'Leaves of three or more axes go to AdamW unless dimension_numbers say '
      f'which axes form the matrix: {", ".join(undecided)}',
      stacklevel=2,
    )
  return labels
