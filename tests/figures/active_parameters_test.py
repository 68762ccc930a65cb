"""Weights counted by hand."""

import pytest

from kexue.figures.active_parameters import parameter_counts
from kexue.models import MoEConfig, TransformerConfig

SIZES = dict(layers=2, width=32, heads=1, hidden=24)
# Attention, its norms, and those of layers; the last norm, embedding, head.
OUTSIDE = 2 * (4 * 32**2 + 2 * 32 + 2 * 32) + 32 + 2 * 256 * 32


@pytest.mark.parametrize(
  'options, more',
  [
    (dict(), 0),
    (dict(normalized=True), 2),  # The scale of each layer.
    (dict(shared=1), 2 * 3 * 32 * 10),
  ],
)
def test_of_experts_a_token_uses_some(options, more):
  moe = MoEConfig(experts=6, chosen=2, hidden=10, **options)
  counts = parameter_counts(TransformerConfig(**SIZES, moe=moe))
  expert, router = 3 * 32 * 10, 32 * 6
  active = 2 * (2 * expert + router) + more
  total = 2 * (6 * expert + router) + more
  assert counts == {
    'active': active,
    'total': total,
    'active_all': OUTSIDE + active,
    'total_all': OUTSIDE + total,
  }


def test_of_a_dense_model_a_token_uses_all():
  counts = parameter_counts(TransformerConfig(**SIZES))
  assert counts['active'] == counts['total'] == 2 * 3 * 32 * 24
  assert counts['active_all'] == counts['total_all'] == OUTSIDE + 2 * 2304


def test_a_layer_without_experts_is_counted_whole():
  moe = MoEConfig(experts=4, chosen=1, hidden=8)
  sizes = TransformerConfig(**SIZES, moe=moe, moe_layers=(1,))
  counts = parameter_counts(sizes)
  dense, expert, router = 3 * 32 * 24, 3 * 32 * 8, 32 * 4
  assert counts['active'] == dense + expert + router
  assert counts['total'] == dense + 4 * expert + router
