"""Weights that a token uses, with experts and without."""

import jax
import jax.numpy as jnp

from ..models import Transformer, TransformerConfig
from ..training.records import Row


def parameter_counts(sizes: TransformerConfig) -> Row:
  """Counts weights, as a token meets them.

  Active are k of n experts and everything else: the router, and outside of
  feed-forward layers attention, norms, head and the whole embedding.

  Args:
    sizes: of a model, dense or with experts.

  Returns:
    `active` and `total`, of feed-forward layers, and `active_all` and
    `total_all`, of the model.

  Example:
    >>> dense = TransformerConfig(layers=1, width=32, heads=1, hidden=10)
    >>> counts = parameter_counts(dense)
    >>> counts['active'], counts['total'], 3 * 32 * 10
    (960, 960, 960)
  """
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(Transformer(sizes).init, jax.random.key(0), tokens)
  found = dict.fromkeys(('active', 'total', 'active_all', 'total_all'), 0)
  for path, x in jax.tree_util.tree_leaves_with_path(shapes['params']):
    names = [entry.key for entry in path]
    routed = any(name.startswith('expert_') for name in names)
    share = sizes.moe.chosen / sizes.moe.experts if routed else 1
    active = round(x.size * share)
    found['active_all'] += active
    found['total_all'] += x.size
    if 'mlp' in names or 'moe' in names:
      found['active'] += active
      found['total'] += x.size
  return found
