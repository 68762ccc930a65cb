r"""A layer of experts, of which each token gets a few.

Shapes: `...` tokens, `D` width, `F` hidden width of an expert, `E` experts, `k`
chosen, `s` shared.

.. math::
  y = \sum_{j \le s} e_j(x) + \sum_{i \in S} \rho_i e_i(x), \qquad
  e(x) = W_{down} (\mathrm{silu}(W_{gate} x) \cdot W_{up} x),

or, in the geometric form of article 10699, :math:`\gamma \cdot` that with each
:math:`e` divided by its root mean square, so that the gate alone says how long
it is; :math:`\gamma` is learned.

References:
  Su, `articles 10699 <https://kexue.fm/archives/10699>`_, `10735
  <https://kexue.fm/archives/10735>`_ and `10757
  <https://kexue.fm/archives/10757>`_, 2025.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from ..checks import require, require_one_of
from ..lowrank.arrays import wide
from ..mapped_axes import AxisName
from .balance_losses import FORMS, balance_loss, router_z_loss
from .balancing import update_bias
from .dispatch import BACKENDS, METHODS, dispatch
from .quantile_balancing import quantile_bias
from .routing import SCORES, route

RULES = ('none', 'sign', 'rms', 'quantile')


class BalanceState(NamedTuple):
  """What a layer knows of its balance, in the collection "balance".

  `bias`: float32 [E], what chooses besides the score. `load`: int32 [E], how
  often each expert was chosen since the bias moved, on all devices. `proposals`
  and `parts`: sum and number of the biases of `quantile_bias` since then.
  """

  bias: jax.Array
  load: jax.Array
  proposals: jax.Array
  parts: jax.Array


@dataclasses.dataclass(frozen=True)
class MoEConfig:
  """Options of `MoE`.

  Args:
    experts: E.
    chosen: k.
    hidden: F; `None`: the hidden width of a dense layer over the k + s that are
      active, rounded up to a multiple of eight: as much work for a token.
    shared: s, experts that all tokens get.
    score: what chooses, see `route`.
    gate: what weights, see `route`; `None`: the same.
    renormalize: see `route`.
    scale: factor of the gates; see `shared_expert_scale`.
    groups: see `route`.
    kept_groups: see `route`.
    normalized: the geometric form.
    rule: what moves the bias: "none", "sign", "rms" or "quantile".
    rate: of "sign" and "rms".
    balance_weight: factor of `balance_loss`; 0: none.
    form: of that loss.
    z_weight: factor of `router_z_loss`; 0: none.
    method: see `dispatch`.
    backend: see `dispatch`.
    capacity_factor: see `dispatch`.
    expert_axis: mapped axis over which the experts are split; one of those over
      which the tokens are.
  """

  experts: int = 8
  chosen: int = 2
  hidden: int | None = None
  shared: int = 0
  score: str = 'sigmoid'
  gate: str | None = None
  renormalize: bool = False
  scale: float = 1.0
  groups: int = 1
  kept_groups: int | None = None
  normalized: bool = False
  rule: str = 'sign'
  rate: float = 1e-3
  balance_weight: float = 0.0
  form: str = 'product'
  z_weight: float = 0.0
  method: str = 'sorted'
  backend: str = 'auto'
  capacity_factor: float = 1.25
  expert_axis: AxisName | None = None

  def __post_init__(self):
    count = lambda x: isinstance(x, int) and x >= 1
    for name in ('experts', 'chosen'):
      value = getattr(self, name)
      require(count(value), name, value, 'an integer of 1 or more')
    most = self.experts - (self.rule == 'quantile')
    require(self.chosen <= most, 'chosen', self.chosen, f'at most {most}')
    good = self.hidden is None or count(self.hidden)
    require(good, 'hidden', self.hidden, 'an integer of 1 or more, or None')
    good = self.shared == 0 or count(self.shared)
    require(good, 'shared', self.shared, 'an integer of 0 or more')
    for name, allowed in (
      ('score', [*SCORES]),
      ('gate', [None, *SCORES]),
      ('rule', RULES),
      ('form', FORMS),
      ('method', METHODS),
      ('backend', BACKENDS),
    ):
      require_one_of(name, getattr(self, name), allowed)
    for name in ('rate', 'balance_weight', 'z_weight'):
      value = getattr(self, name)
      require(value >= 0, name, value, '0 or more')

  def hidden_width(self, dense: int) -> int:
    """F, where a dense layer has a hidden width of `dense`."""
    return self.hidden or -(-dense // (self.chosen + self.shared) // 8) * 8


def expert(
  matmul: Callable[..., jax.Array],
  params: dict[str, jax.Array],
  x: jax.Array,
  *,
  normalized: bool = False,
) -> jax.Array:
  """A gated MLP, as `dispatch` takes experts.

  Args:
    matmul: product of rows with a matrix of `params`.
    params: kernels "gate" and "up" [..., D, F] and "down" [..., F, D'].
    x: rows [..., D].
    normalized: whether the output is divided by its root mean square.

  Returns:
    [..., D'].

  Example:
    >>> params = {k: jnp.ones((2, 2)) for k in ('gate', 'up', 'down')}
    >>> print(expert(jnp.matmul, params, jnp.ones((1, 2)), normalized=True))
    [[1. 1.]]
  """
  hidden = nn.silu(matmul(x, params['gate'])) * matmul(x, params['up'])
  y = matmul(hidden, params['down'])
  if not normalized:
    return y
  wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
  square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
  return (wide * lax.rsqrt(square + 1e-12)).astype(y.dtype)


def update_balance(
  balance: Any, *, rule: str = 'sign', rate: jax.typing.ArrayLike = 1e-3
) -> Any:
  """Moves the bias of every layer, once for each step of the optimizer.

  After the step, whose microbatches have all chosen by the old bias and added
  up their loads; `make_step(..., after=)` calls it there. Not in evaluation.

  Args:
    balance: the collection "balance", or any pytree with `BalanceState`s in it.
    rule: that of `MoEConfig`.
    rate: of "sign" and "rms".

  Returns:
    The collection, with loads and proposals of zero.

  Example:
    >>> state = BalanceState(
    ...   jnp.zeros(2), jnp.array([3, 1]), jnp.zeros(2), jnp.zeros((), int))
    >>> print(update_balance({'moe': state})['moe'].bias)
    [-0.001  0.001]
  """
  require_one_of('rule', rule, RULES)

  def moved(state):
    bias = state.bias
    if rule in ('sign', 'rms'):
      bias = update_bias(bias, state.load, rate=rate, rule=rule)
    elif rule == 'quantile':
      parts = state.parts[..., None]
      mean = state.proposals / jnp.maximum(parts, 1)
      bias = jnp.where(parts > 0, mean, bias)
    zeros = jax.tree.map(jnp.zeros_like, state)
    return zeros._replace(bias=bias)

  is_state = lambda x: isinstance(x, BalanceState)
  one = lambda x: moved(x) if is_state(x) else x
  return jax.tree.map(one, balance, is_leaf=is_state)


def expert_specs(tree: Any, axis_name: str) -> Any:
  """How the experts of a model are split over an axis of a mesh.

  Args:
    tree: parameters, or anything with their paths in it, such as a state.
    axis_name: an axis of the mesh.

  Returns:
    Pytree of `PartitionSpec`s: the axis for the experts of each `MoE`, nothing
    for what all devices have.

  Example:
    >>> layer = MoE(MoEConfig(experts=4, hidden=8))
    >>> variables = jax.jit(layer.init)(jax.random.key(1), jnp.ones((1, 8)))
    >>> specs = expert_specs(variables['params'], 'expert')
    >>> print(*specs['router'], *specs['expert_up']['kernel'])
    expert
  """

  def spec(path, x):
    names = [str(getattr(entry, 'key', '')) for entry in path]
    if names[-1:] != ['kernel'] or not names[-2].startswith('expert_'):
      return P()
    return P(*[None] * (x.ndim - 3), axis_name)  # Layers before it, if stacked.

  return jax.tree_util.tree_map_with_path(spec, tree)


class _Kernels(nn.Module):
  """The matrices of some experts, [number, in, out]."""

  number: int
  shape: tuple[int, int]
  variance: float = 1.0

  @nn.compact
  def __call__(self):
    init = nn.initializers.variance_scaling(
      self.variance, 'fan_in', 'normal', batch_axis=(0,)
    )
    return self.param('kernel', init, (self.number, *self.shape))


class MoE(nn.Module):
  """A mixture of gated MLPs.

  Losses are sown into the collection "losses", weighted already, to be added to
  the loss, and the `Routing` into "intermediates". In training the load of the
  batch is added to the state in "balance": pass `mutable=['balance', 'losses']`
  and give the collection to `update_balance` after the step. The state is no
  parameter: no gradient, no decay, no slot of an optimizer belongs to it.

  Args:
    config: options.
    hidden: F, of each expert; `None`: that of the config.
    variance: factor of the variance of the last kernel at the start.
    dtype: of the products; router, gates and sums stay in float32.
    axis_name: mapped axis or axes over which the tokens are split, unused while
      initialising; parameters of `config.expert_axis` are then this device's.

  Example:
    >>> x = jax.random.normal(jax.random.key(0), (4, 16, 8))
    >>> layer = MoE(MoEConfig(experts=4, hidden=8, balance_weight=0.01))
    >>> variables = jax.jit(layer.init)(jax.random.key(1), x)
    >>> y, changed = layer.apply(
    ...   variables, x, train=True, mutable=['balance', 'losses'])
    >>> y.shape, int(changed['balance']['state'].load.sum())
    ((4, 16, 8), 128)
    >>> balance = update_balance(changed['balance'])
    >>> print(jnp.abs(balance['state'].bias).max())
    0.001

  References:
    Su, `article 10699 <https://kexue.fm/archives/10699>`_, 2025, the geometry,
    and `article 10757 <https://kexue.fm/archives/10757>`_, 2025, the bias;
    DeepSeek-AI, `DeepSeekMoE <https://arxiv.org/abs/2401.06066>`_, 2024, on
    shared experts.
  """

  config: MoEConfig
  hidden: int | None = None
  variance: float = 1.0
  dtype: Any = jnp.float32
  axis_name: AxisName | None = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool = False,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """Mixes experts for each token.

    Args:
      x: [..., D].
      train: whether the load is added to the state.
      mask: [...], true where a token counts; `None`: all. The others go to no
        routed expert.

    Returns:
      [..., D] in `dtype`.
    """
    c, first = self.config, self.is_initializing()
    axis_name = None if first else self.axis_name
    expert_axis = None if first else c.expert_axis
    devices = 1 if expert_axis is None else lax.axis_size(expert_axis)
    logits = self._logits(x)
    routing = self._route(logits, mask, axis_name, train)
    if not first:
      self._sow_losses(logits, routing, mask, axis_name)
    x = x.astype(self.dtype)
    function = functools.partial(expert, normalized=c.normalized)
    y = dispatch(
      x,
      routing,
      function,
      self._experts('expert_', c.experts // devices, x.shape[-1]),
      method=c.method,
      backend=c.backend,
      capacity_factor=c.capacity_factor,
      axis_name=expert_axis,
    )
    if c.shared:
      kernels = self._experts('shared_', c.shared, x.shape[-1])
      own = lambda params: function(jnp.matmul, params, x)
      y += jnp.sum(jax.vmap(own)(kernels), axis=0)
    if c.normalized:
      # As loud at the start as one expert that is not normalised.
      init = nn.initializers.constant(self.variance**0.5)
      y *= self.param('scale', init, ()).astype(self.dtype)
    return y

  def _logits(self, x):
    """Of the router, in float32 or better."""
    init = nn.initializers.lecun_normal()
    router = self.param('router', init, (x.shape[-1], self.config.experts))
    return wide(x) @ wide(router)

  def _route(self, logits, mask, axis_name, train):
    """Chooses by the old bias, and takes down what the new one will need."""
    c = self.config
    zeros = jnp.zeros(c.experts, jnp.float32)
    none = jnp.zeros(c.experts, jnp.int32)
    start = lambda: BalanceState(zeros, none, zeros, jnp.zeros((), jnp.int32))
    state = self.variable('balance', 'state', start)
    old = state.value
    routing = route(
      logits,
      old.bias,
      c.chosen,
      score=c.score,
      gate=c.gate,
      renormalize=c.renormalize,
      scale=c.scale,
      groups=c.groups,
      kept_groups=c.kept_groups,
      mask=mask,
      axis_name=axis_name,
    )
    self.sow('intermediates', 'routing', routing)
    if train and not self.is_initializing():
      new = old._replace(load=old.load + routing.load, parts=old.parts + 1)
      if c.rule == 'quantile':
        bias = quantile_bias(
          SCORES[c.score](logits),
          old.bias,
          c.chosen,
          mask=mask,
          axis_name=axis_name,
        )
        new = new._replace(proposals=old.proposals + bias)
      state.value = new
    return routing

  def _sow_losses(self, logits, routing, mask, axis_name):
    c = self.config
    if c.balance_weight:
      loss = balance_loss(
        logits, routing, score=c.score, form=c.form, axis_name=axis_name
      )
      self.sow('losses', 'balance', c.balance_weight * loss)
    if c.z_weight:
      loss = router_z_loss(logits, mask=mask, axis_name=axis_name)
      self.sow('losses', 'router_z', c.z_weight * loss)

  def _experts(self, prefix, number, width):
    """Kernels by name."""
    hidden = self.hidden or self.config.hidden
    require(hidden is not None, 'hidden', hidden, 'an integer of 1 or more')
    make = lambda name, *shape, variance=1.0: _Kernels(
      number, shape, variance, name=prefix + name
    )().astype(self.dtype)
    return {
      'gate': make('gate', width, hidden),
      'up': make('up', width, hidden),
      'down': make('down', hidden, width, variance=self.variance),
    }
