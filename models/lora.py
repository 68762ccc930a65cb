"""A dense layer with a low-rank adapter, over `kexue.lowrank.lora`.

Shapes: `in` the width of the input, `F` features, `r` rank.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..checks import require_rank
from ..lowrank.arrays import require_decomposition_rank
from ..lowrank.lora import LoRA, kaiming_uniform, lora_apply, lora_scale


class LoRADense(nn.Module):
  """`nn.Dense` whose kernel is frozen and adapted by two factors.

  The collection "params" holds `a` [in, r] and `b` [r, F], the names that
  `kexue.optimizers.lora_pro` looks for, and "frozen" holds `kernel` [in, F] and
  `bias` [F]: what goes by "params", gradients, optimizers and decay, sees the
  adapter alone. The start is LoRA's own; for another, and for a pretrained
  kernel, put what `lora_init` returns in the place of the variables, with the
  same `alpha` and `scaling`.

  Args:
    features: F.
    rank: r, at most the smaller of `in` and F.
    alpha: see `kexue.lowrank.lora_scale`.
    scaling: see `kexue.lowrank.lora_scale`.
    use_bias: whether the frozen layer has a bias.
    dtype: of the computation; `None`: that of input and variables.
    kernel_init: of the frozen kernel.

  Example:
    >>> from kexue.lowrank import lora_init
    >>> key, x, kernel = jax.random.key(0), jnp.ones((2, 4)), jnp.eye(4)
    >>> layer = LoRADense(features=4, rank=1, use_bias=False)
    >>> variables = layer.init(key, x)
    >>> jax.tree.map(jnp.shape, variables)
    {'frozen': {'kernel': (4, 4)}, 'params': {'a': (4, 1), 'b': (1, 4)}}
    >>> lora = lora_init(key, kernel, layer.rank, method='pissa')
    >>> variables = {
    ...   'params': {'a': lora.a, 'b': lora.b},
    ...   'frozen': {'kernel': lora.base},
    ... }
    >>> bool(jnp.allclose(layer.apply(variables, x), x @ kernel))
    True
  """

  features: int
  rank: int
  alpha: float | None = None
  scaling: str = 'rslora'
  use_bias: bool = True
  dtype: Any = None
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., in] -> [..., F].

    Raises:
      ValueError: for a rank outside 1..min(in, F), an input without axes, or
        what `lora_scale` refuses.
    """
    require_rank('x', x, 1, at_least=True)
    fan_in = jnp.shape(x)[-1]
    require_decomposition_rank(self.rank, (fan_in, self.features))
    scale = lora_scale(self.rank, alpha=self.alpha, scaling=self.scaling)

    def frozen(name, init, shape):
      make = lambda: init(self.make_rng('params'), shape)
      return self.variable('frozen', name, make).value

    kernel = frozen('kernel', self.kernel_init, (fan_in, self.features))
    a = self.param('a', kaiming_uniform, (fan_in, self.rank))
    zeros = nn.initializers.zeros
    b = self.param('b', zeros, (self.rank, self.features))
    bias = frozen('bias', zeros, (self.features,)) if self.use_bias else None
    x, kernel, a, b, bias = nn.dtypes.promote_dtype(
      x, kernel, a, b, bias, dtype=self.dtype
    )
    y = lora_apply(x, LoRA(a, b, kernel, jnp.asarray(scale)))
    return y if bias is None else y + bias
