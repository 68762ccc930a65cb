"""The size of Adam's update, from the signal-to-noise ratio of the gradient.

References:
  Su, `article 11267 <https://kexue.fm/archives/11267>`_, 2025.
"""

from typing import Any

from jax.typing import ArrayLike

from ..checks import require


def adam_update_rms(b1: ArrayLike, snr: ArrayLike = 0.0) -> Any:
  r"""Root mean square of the entries of Adam's update.

  .. math:: \sqrt{\frac{q + r}{q + 1}} = \sqrt{1 - \frac{1 - r}{1 + q}},
    \qquad r = \frac{1 - \beta_1}{1 + \beta_1}, \quad
    q = \frac{\|\mu\|^2}{\|\sigma\|^2}

  of article 11267, for gradients that are independent from step to step, with
  mean :math:`\mu` and variance :math:`\sigma^2`: the momentum keeps `r` of the
  noise, the second moment all of it. Noise alone and `b1 = 0.9` give the 0.23
  that Muon's 0.2 imitates. For a batch of `B` examples the ratio `q` is
  :math:`B / B_{simple}`, whence the update grows with the batch.

  Deviations: none. `b2` is taken as 1: at 0.95 the update of noise alone is 2
  per cent smaller. When gradients of successive steps point against each other,
  as at large learning rates, so is everything.

  Args:
    b1: decay of the mean, in [0, 1).
    snr: `q`, 0 or more; infinite: no noise.

  Returns:
    What comes from arithmetic on the arguments: a float for floats. In
    [`sqrt(r)`, 1].

  Raises:
    ValueError: for a number outside its range.

  Example:
    >>> print(f'{adam_update_rms(0.9):.4f} {adam_update_rms(0.9, 0.1):.4f}')
    0.2294 0.3725

  References:
    Su, `article 11267 <https://kexue.fm/archives/11267>`_, 2025.
  """
  if isinstance(b1, int | float):
    require(0 <= b1 < 1, 'b1', b1, 'a number in [0, 1)')
  if isinstance(snr, int | float):
    require(snr >= 0, 'snr', snr, '0 or more')
  return (1 - 2 * b1 / (1 + b1) / (1 + snr)) ** 0.5
