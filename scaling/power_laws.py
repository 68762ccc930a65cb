r"""Published power laws for learning rate and batch size of language models.

Fits to the grids of one laboratory: data, tokenizer, architecture, schedule,
weight decay and betas of that recipe are in the constants. Use them to choose
where a sweep starts. Learning rates are peak learning rates of AdamW; batch
sizes are *tokens*, not sequences; `N` parameters, `D` tokens, `C` floating
point operations are those of the whole run. Pure arithmetic: floats give
floats.
"""

from typing import NamedTuple

from jax.typing import ArrayLike

from .rules import require_positive


class PublishedOptimum(NamedTuple):
  """Peak learning rate, and batch size in tokens.

  Example:
    >>> PublishedOptimum(1e-3, 2**20).batch_tokens
    1048576
  """

  learning_rate: ArrayLike
  batch_tokens: ArrayLike


def deepseek_law(flops: ArrayLike) -> PublishedOptimum:
  r"""DeepSeek LLM, from the compute alone.

  .. math:: \eta = 0.3118\, C^{-0.1250}, \qquad B = 0.2920\, C^{0.3271}

  Dense models, a multi-step schedule, 1e17 to 2e19 FLOPs, at the compute
  optimum of model size and data. `C` is :math:`M D` with the *non-embedding*
  FLOPs per token `M`, attention included: not quite `6 N D`.

  Args:
    flops: `C`, above 0.

  Returns:
    `PublishedOptimum`.

  Raises:
    ValueError: for a number that is not positive.

  Example:
    >>> found = deepseek_law(1e20)
    >>> print(f'{found.learning_rate:.6f} {found.batch_tokens:.0f}')
    0.000986 1017145

  References:
    DeepSeek-AI, `DeepSeek LLM <https://arxiv.org/abs/2401.02954>`_, 2024.
  """
  require_positive(flops=flops)
  return PublishedOptimum(0.3118 * flops**-0.1250, 0.2920 * flops**0.3271)


def step_law(parameters: ArrayLike, tokens: ArrayLike) -> PublishedOptimum:
  r"""Step Law, from model and data, which need not be at the compute optimum.

  .. math:: \eta = 1.79\, N^{-0.713} D^{0.307}, \qquad B = 0.58\, D^{0.571}

  A cosine schedule that ends at a fixed 1e-5, not at a fraction of the peak.

  Args:
    parameters: `N`, *non-embedding*, above 0.
    tokens: `D`, above 0.

  Returns:
    `PublishedOptimum`.

  Raises:
    ValueError: for a number that is not positive.

  Example:
    >>> found = step_law(1e9, 1e11)
    >>> print(f'{found.learning_rate:.6f} {found.batch_tokens:.0f}')
    0.001632 1107715

  References:
    Li et al., `Predictable Scale: Part I <https://arxiv.org/abs/2503.04715>`_,
    2025.
  """
  require_positive(parameters=parameters, tokens=tokens)
  rate = 1.79 * parameters**-0.713 * tokens**0.307
  return PublishedOptimum(rate, 0.58 * tokens**0.571)


def moonlight_law(flops: ArrayLike) -> PublishedOptimum:
  r"""Moonlight, from the compute alone.

  .. math:: \eta = 0.0127\, C^{-0.057}, \qquad B = 0.0065\, C^{0.4138}

  The AdamW baseline of Muon's scaling experiments, whose learning rate Muon
  takes over with its update scaled to an RMS of 0.2; dense models of 0.4 to 1.5
  billion parameters.

  Args:
    flops: `C`, above 0.

  Returns:
    `PublishedOptimum`.

  Raises:
    ValueError: for a number that is not positive.

  Example:
    >>> found = moonlight_law(1e20)
    >>> print(f'{found.learning_rate:.6f} {found.batch_tokens:.0f}')
    0.000920 1227194

  References:
    Liu et al., `Muon is Scalable for LLM Training
    <https://arxiv.org/abs/2502.16982>`_, 2025.
  """
  require_positive(flops=flops)
  return PublishedOptimum(0.0127 * flops**-0.057, 0.0065 * flops**0.4138)


class PowerLines(NamedTuple):
  """Factors from a reference run: of timescale and of two batch sizes.

  Example:
    >>> PowerLines(1.0, 2.0, 2.5).critical_batch_size
    2.5
  """

  timescale: ArrayLike
  optimal_batch_size: ArrayLike
  critical_batch_size: ArrayLike


def power_lines_law(
  token_ratio: ArrayLike, parameter_ratio: ArrayLike = 1.0
) -> PowerLines:
  r"""Power Lines, from a run whose optimum is known to a larger one.

  .. math:: \tau = \frac{B}{\eta \lambda D} \propto (D/N)^{-0.527}, \qquad
    B_{opt} \propto D^{0.383}, \qquad B_{crit} \propto D_{min}^{0.462}

  with AdamW's weight decay :math:`\lambda`, so that :math:`\eta \lambda` is
  what a run must change; both batch sizes do not depend on the model. Given as
  ratios, which outlive the recipe better than constants do. For the critical
  batch size the tokens are :math:`D_{min}`, those that a small batch would need
  for the same loss. The weight decay of the larger run follows as
  :math:`\lambda = B / (\eta \tau D)`.

  Args:
    token_ratio: tokens of the new run over those of the reference, above 0.
    parameter_ratio: the same of the parameters.

  Returns:
    `PowerLines`, factors for the new run.

  Raises:
    ValueError: for a number that is not positive.

  Example:
    >>> factors = power_lines_law(10.0)
    >>> print(' '.join(f'{x:.3f}' for x in factors))
    0.297 2.415 2.897

  References:
    Bergsma et al., `Power Lines <https://arxiv.org/abs/2505.13738>`_, 2025.
  """
  require_positive(token_ratio=token_ratio, parameter_ratio=parameter_ratio)
  return PowerLines(
    (token_ratio / parameter_ratio) ** -0.527,
    token_ratio**0.383,
    token_ratio**0.462,
  )
