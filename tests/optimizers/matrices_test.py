"""Labels by path, shape and numbers; reshaping there and back."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import MuonDimensionNumbers

from kexue.optimizers import FusedDimensionNumbers, matrix_labels
from kexue.optimizers.matrices import (
  from_matrices,
  numbers_of_leaves,
  split_fused,
  to_matrices,
)


@pytest.mark.parametrize(
  'path, shape, label',
  [
    (('mlp', 'kernel'), (8, 4), 'muon'),
    (('Dense_0', 'kernel'), (8, 4), 'muon'),
    (('multi_head_attention', 'kernel'), (8, 4), 'muon'),
    (('heads', 'kernel'), (8, 4), 'muon'),
    (('embedding',), (8, 4), 'adamw'),
    (('token_embedding', 'kernel'), (8, 4), 'adamw'),
    (('Embed_0', 'weight'), (8, 4), 'adamw'),
    (('wte',), (8, 4), 'adamw'),
    (('unembedding', 'kernel'), (8, 4), 'adamw'),
    (('head', 'kernel'), (8, 4), 'adamw'),
    (('lm_head', 'kernel'), (8, 4), 'adamw'),
    (('head_0', 'kernel'), (8, 4), 'adamw'),
    (('classifier', 'kernel'), (8, 4), 'adamw'),
    (('layers', 'bias'), (12, 4), 'adamw'),
    (('layers', 'norm', 'scale'), (12, 4), 'adamw'),
    (('mlp', 'bias'), (4,), 'adamw'),
    (('vector', 'kernel'), (8, 1), 'adamw'),
    (('temperature',), (), 'adamw'),
  ],
)
def test_labels_by_path_and_shape(path, shape, label):
  tree = jnp.ones(shape)
  for name in reversed(path):
    tree = {name: tree}
  assert jax.tree.leaves(matrix_labels(tree)) == [label]


def test_more_axes_go_to_adamw_with_one_warning():
  params = {'conv': jnp.ones((3, 3, 1, 8)), 'q': jnp.ones((8, 2, 4))}
  with pytest.warns(UserWarning, match=r"\['conv'\], \['q'\]") as caught:
    labels = matrix_labels(params)
  assert labels == {'conv': 'adamw', 'q': 'adamw'} and len(caught) == 1


def test_numbers_alone_decide_where_they_are_given():
  params = {'embedding': jnp.ones((8, 4)), 'w': jnp.ones((4, 4))}
  numbers = {'embedding': MuonDimensionNumbers(), 'w': None}
  expected = {'embedding': 'muon', 'w': 'adamw'}
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert matrix_labels(params, numbers) == expected
    assert matrix_labels(params, lambda params: numbers) == expected
  with pytest.raises(ValueError, match=r"no entry.*\['w'\]"):
    matrix_labels(params, {'embedding': None})


@pytest.mark.parametrize(
  'numbers, matrices',
  [
    (MuonDimensionNumbers(0, 3), (12, 2, 5)),
    (MuonDimensionNumbers((0, 1, 2), -1), (1, 24, 5)),
    (MuonDimensionNumbers((3,), (1, 0)), (4, 5, 6)),
    (MuonDimensionNumbers(2, (3,)), (6, 4, 5)),
  ],
)
def test_reshaping_comes_back(numbers, matrices):
  x = jnp.arange(120.0).reshape(2, 3, 4, 5)
  flat = to_matrices(x, numbers)
  assert flat.shape == matrices
  np.testing.assert_array_equal(from_matrices(flat, x.shape, numbers), x)
  # The product means the same before and after.
  if numbers == MuonDimensionNumbers((0, 1, 2), -1):
    v = jnp.arange(24.0)
    np.testing.assert_allclose(
      v @ flat[0], jnp.einsum('abc,abcd->d', v.reshape(2, 3, 4), x)
    )


def test_fused_kernels_are_split_along_the_flattened_output():
  x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
  numbers = FusedDimensionNumbers((6, 2, 4), 1, (2, 3))
  whole = to_matrices(x, numbers)
  parts = split_fused(whole, numbers)
  assert [p.shape for p in parts] == [(2, 5, 6), (2, 5, 2), (2, 5, 4)]
  np.testing.assert_array_equal(parts[1][1], x[1].reshape(5, 12)[:, 6:8])
  np.testing.assert_array_equal(from_matrices(whole, x.shape, numbers), x)
  assert matrix_labels({'w': x}, {'w': numbers}) == {'w': 'muon'}
  plain = MuonDimensionNumbers(1, (2, 3))
  assert len(split_fused(to_matrices(x, plain), plain)) == 1


@pytest.mark.parametrize('sizes', [(6, 2), (12, 0), (6, 7)])
def test_sizes_that_do_not_fill_the_output_are_refused(sizes):
  numbers = FusedDimensionNumbers(sizes)
  with pytest.raises(ValueError, match='sizes: got .* parts of the 12 outputs'):
    numbers_of_leaves({'w': jnp.ones((5, 12))}, {'w': numbers})
