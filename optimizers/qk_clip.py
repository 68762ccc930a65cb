r"""QK-clip: bounds attention logits by rescaling what makes them (MuonClip).

Shapes: `L` layers, `D` width, `H` query heads, `K` head width, and
:math:`S_h` the largest logit of head `h` before the softmax. With a threshold
:math:`\tau` and :math:`\gamma_h = \min(1, \tau / S_h)`, after the optimizer's
step,

.. math::
  W_q^h \leftarrow \sqrt{\gamma_h} \, W_q^h, \qquad
  W_k^h \leftarrow \sqrt{\gamma_h} \, W_k^h:

the logits of head `h` shrink by :math:`\gamma_h`, those of the others stay.

References:
  Su, `QK-clip <https://kexue.fm/archives/11126>`_, 2025;
  Kimi Team, `Kimi K2 <https://arxiv.org/abs/2507.20534>`_, 2025, Algorithm 1.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import keystr

from ..checks import require, require_one_of, require_rank
from .matrices import names_of_path

# What a leaf is, or the widths of several things side by side in each head.
Role = str | Mapping[str, int]

_QUERIES = ('query', 'rotary_query')
_ROLES = (*_QUERIES, 'key', 'fixed')
_NAMES: dict[str, Role] = {
  **dict.fromkeys(['query', 'query_proj', 'q_proj', 'wq'], 'query'),
  **dict.fromkeys(['key', 'key_proj', 'k_proj', 'wk'], 'key'),
}


class _Leaf(NamedTuple):
  """A leaf of an attention, and the widths of what each of its heads holds."""

  index: int
  name: str
  x: jax.Array
  parts: dict[str, int]


def _natural(names: Sequence[str]) -> list[list[int | str]]:
  """Sorts `layers_2` before `layers_10`."""
  digits = re.compile(r'(\d+)')
  return [
    [int(s) if i % 2 else s for i, s in enumerate(digits.split(name))]
    for name in names
  ]


def _rows(max_logits: Any, attentions: list[tuple[str, ...]]) -> list[Any]:
  """The logits of each attention: [H], or [L, H] of stacked layers."""
  if isinstance(max_logits, Mapping):
    found = [
      (names_of_path(path), x)
      for path, x in jax.tree_util.tree_leaves_with_path(max_logits)
    ]
    # Either path may go deeper than the other.
    same = lambda a, b: all(x == y for x, y in zip(a, b, strict=False))
    rows = [[x for names, x in found if same(names, a)] for a in attentions]
    for names, row in zip(attentions, rows, strict=True):
      name = f'entries of max_logits for {"/".join(names)}'
      require(len(row) == 1, name, len(row), '1')
    return [row for (row,) in rows]
  count = len(attentions)
  if isinstance(max_logits, Sequence) or (
    jnp.ndim(max_logits) > 1 and len(max_logits) == count
  ):
    rows = list(max_logits)
  else:
    rows = [max_logits]
  shapes = jax.tree.map(jnp.shape, max_logits)
  require(
    len(rows) == count,
    'max_logits',
    shapes,
    f'a row for each of {count} layers',
  )
  return rows


def _heads_of(
  leaf: _Leaf, lead: tuple[int, ...], head_axis: int, fused: bool
) -> int:
  """The number of heads of a leaf, which must have room for them."""
  shape, width = jnp.shape(leaf.x), sum(leaf.parts.values())
  expected = f'heads on axis {head_axis}, after the stacked axes {lead}'
  inside = -len(shape) <= head_axis < len(shape)
  axis = head_axis % len(shape) if inside else -1
  fits = axis >= len(lead) and shape[: len(lead)] == lead
  require(fits, leaf.name, shape, expected)
  if not fused:
    expected = f'heads of width {width} on the last axis'
    require(width in (1, shape[-1]), leaf.name, shape, expected)
    return shape[axis]
  expected = f'a multiple of the width {width} on axis {head_axis}'
  require(shape[axis] % width == 0, leaf.name, shape, expected)
  return shape[axis] // width


def _factors(
  logits: jax.Array, threshold: float, key_heads: int
) -> dict[str, jax.Array]:
  """What each head [..., heads] of each role is multiplied by."""
  over = (logits > threshold) & jnp.isfinite(logits)
  gamma = jnp.where(over, threshold / logits, 1.0)
  groups = gamma.reshape(*gamma.shape[:-1], key_heads, -1)
  key = jnp.sqrt(jnp.max(groups, axis=-1))
  query = (groups / key[..., None]).reshape(gamma.shape)
  return {'query': query, 'rotary_query': gamma, 'key': key}


def _scaled(
  leaf: _Leaf,
  heads: int,
  factors: Mapping[str, jax.Array],
  head_axis: int,
  fused: bool,
) -> jax.Array:
  """Multiplies the parts of each head; a factor of one leaves every bit."""
  *lead, _ = factors['query'].shape
  fixed = jnp.ones((*lead, heads), factors['query'].dtype)
  columns = [
    jnp.broadcast_to(factors.get(role, fixed)[..., None], (*lead, heads, width))
    for role, width in leaf.parts.items()
  ]
  factor = jnp.concatenate(columns, axis=-1)  # [..., heads, width]
  x = leaf.x
  shape = [*lead, *[1] * (x.ndim - len(lead))]
  if not fused:
    shape[-1] = factor.shape[-1]
  shape[head_axis] = heads * factor.shape[-1] if fused else heads
  factor = factor.reshape(shape)
  scaled = x.astype(jnp.promote_types(x.dtype, factor.dtype)) * factor
  return jnp.where(factor == 1, x, scaled.astype(x.dtype))


def _clip(
  leaves: list[_Leaf],
  logits: jax.Array,
  threshold: float,
  head_axis: int,
  fused: bool,
) -> list[jax.Array]:
  """Clips the leaves of one attention by its logits [..., H]."""
  *lead, heads = logits.shape
  counts = [_heads_of(leaf, tuple(lead), head_axis, fused) for leaf in leaves]
  counted = list(zip(leaves, counts, strict=True))
  key_heads = next(n for leaf, n in counted if 'key' in leaf.parts)
  for leaf, count in counted:
    if any(role in leaf.parts for role in _QUERIES):
      fits, expected = count == heads, f'{heads} heads on axis {head_axis}'
    else:
      fits = 0 < count == key_heads and heads % count == 0
      expected = f'a divisor of {heads} heads, the same for all keys'
    require(fits, leaf.name, jnp.shape(leaf.x), expected)
  factors = _factors(logits, threshold, key_heads)
  return [_scaled(leaf, n, factors, head_axis, fused) for leaf, n in counted]


def qk_clip(
  params: Any,
  max_logits: Any,
  *,
  threshold: float = 100.0,
  roles: Mapping[str, Role] | None = None,
  head_axis: int = -2,
  head_width: int | None = None,
  axis_name: str | tuple[str, ...] | None = None,
) -> Any:
  r"""Rescales queries and keys of the heads whose logits exceed a threshold.

  The formula of the module's docstring, for use on the parameters after each
  update. Heads below the threshold keep every bit, and so does a head whose
  largest logit is not finite: a broken batch must not erase it.

  Grouped queries: a key head that serves several query heads takes the root of
  the mildest of their factors, each query head the rest of its own,

  .. math::
    W_k \leftarrow \sqrt{\gamma_{\max}} \, W_k, \qquad
    W_q^h \leftarrow \frac{\gamma_h}{\sqrt{\gamma_{\max}}} \, W_q^h.

  The product is :math:`\gamma_h` for each, nothing ever grows, and as long as
  one head of the group is below the threshold the shared key is not touched.

  MLA: the rotary key is shared by all heads; leave it out of `roles`, and the
  rotary query takes :math:`\gamma_h` alone.

  With normalised queries and keys (`qk_norm=True`) the scale of the kernels
  cancels and the clip does nothing: the gains of the norms bound the logits.

  Deviations: none in the formula; the articles leave grouped queries open. Su
  means the largest absolute logit, the paper and our `Transformer` the largest
  one; pass what should be bounded.

  Args:
    params: pytree of arrays.
    max_logits: :math:`S_h` of the step, over batch and positions, logits scaled
      as the softmax sees them. [L, H], as `Transformer` returns with
      `return_max_logits`, or a list of [H]: one row for each attention in the
      natural order of its path (2 before 10). [L, H] for a single attention
      whose leaves are stacked [L, ...] by `nn.scan`. Or a nested dictionary
      with an entry on the path of each attention, for anything else.
    threshold: :math:`\tau`, above 0; 100 in Kimi K2.
    roles: name in a path, in snake case, to what lies below it, kernels and
      biases: "query", "key" or "rotary_query". Kernels that hold several things
      side by side in each head have a dictionary of widths, with "fixed" for
      what stays; DeepSeek's are `{'wq_b': {'query': 128, 'rotary_query': 64},
      'wkv_b': {'key': 128, 'fixed': 128}}`. `None`: `query`, `query_proj`,
      `q_proj`, `wq` and the same for keys. What precedes the name tells
      attentions apart.
    head_axis: of every such leaf; -2 for [D, H, K] and biases [H, K].
    head_width: `None` if heads have an axis of their own; K if they lie side by
      side on it, such as -1 for [D, H K].
    axis_name: mapped axis over which the largest logit is taken first.

  Returns:
    Parameters of the same structure, shapes and dtypes.

  Raises:
    ValueError: for a leaf whose heads are not those of its logits, logits that
      do not fit the attentions, an attention without query or key, or an
      argument outside its range.

  Example:
    >>> params = {'query': jnp.ones((1, 2, 1)), 'key': jnp.ones((1, 2, 1))}
    >>> clipped = qk_clip(params, jnp.array([400.0, 3.0]))
    >>> print(clipped['query'][0, :, 0])
    [0.5 1. ]

  References:
    Su, `article 11126 <https://kexue.fm/archives/11126>`_, 2025.
    Kimi Team, `Kimi K2 <https://arxiv.org/abs/2507.20534>`_, 2025.
  """
  if isinstance(threshold, int | float):
    require(threshold > 0, 'threshold', threshold, 'a number above 0')
  fused = head_width is not None
  require(not fused or head_width >= 1, 'head_width', head_width, '1 or more')
  roles = _NAMES if roles is None else roles
  parts = {
    name: dict(role) if isinstance(role, Mapping) else {role: head_width or 1}
    for name, role in roles.items()
  }
  for name, widths in parts.items():
    for role in widths:
      require_one_of(f'role of {name}', role, _ROLES)

  leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
  attentions: dict[tuple[str, ...], list[_Leaf]] = {}
  for i, (path, x) in enumerate(leaves):
    names = names_of_path(path)
    at = [j for j, name in enumerate(names) if name in parts]
    if at:
      leaf = _Leaf(i, f'leaf {keystr(path)}', x, parts[names[at[-1]]])
      attentions.setdefault(tuple(names[: at[-1]]), []).append(leaf)
  expected = f'some below one of {[*parts]}'
  require(bool(attentions), 'leaves of queries and keys', 0, expected)

  if axis_name is not None:
    max_logits = lax.pmax(max_logits, axis_name)
  order = sorted(attentions, key=_natural)
  new = [x for _, x in leaves]
  for names, logits in zip(order, _rows(max_logits, order), strict=True):
    members = attentions[names]
    got = sorted({role for leaf in members for role in leaf.parts})
    name = f'roles in {"/".join(names) or "params"}'
    require({'query', 'key'} <= {*got}, name, got, 'a query and a key')
    require_rank('max_logits', logits, 1, at_least=True)
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    clipped = _clip(members, logits, threshold, head_axis, fused)
    for leaf, x in zip(members, clipped, strict=True):
      new[leaf.index] = x
  return treedef.unflatten(new)
