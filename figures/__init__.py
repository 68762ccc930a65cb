"""One file per figure, and their table: a line registers one.

A figure file is a docstring (paper, figure number, what should be seen, the
expected number and the cost), `MOSAIC` (the names of its panels), `Config` (a
dataclass whose defaults are the quick preset; `full()` makes the long one and
`check(data_dir)` refuses what could not run before a file is touched),
`run(config, key, workdir) -> rows` and `plot(rows, axes) -> numbers`, which
draws on a dict of axes from the rows alone and returns the headline numbers.
"""

import importlib
from types import ModuleType
from typing import NamedTuple

from ..checks import require_one_of


class Figure(NamedTuple):
  """A row of `launch.py --list`; costs are minutes on two CPU cores."""

  paper: str
  claim: str
  quick: str
  full: str


FIGURES: dict[str, Figure] = {
  'muon_vs_adamw': Figure(
    'Moonlight, arXiv 2502.16982, fig. 1 and 3',
    'Muon needs about half the compute of AdamW',
    '2.5',
    '27',
  ),
  'msign_convergence': Figure(
    'Polar Express, arXiv 2505.16932; articles 10592, 10922',
    'Keller stays at error 0.3, Polar Express converges and trains better',
    '1.5',
    '5',
  ),
  'momentum_ablation': Figure(
    'modded-nanogpt, track 3; article 10739',
    'Muon without momentum needs 2.5 times the steps',
    '1',
    '4.5',
  ),
  'update_rms': Figure(
    'Moonlight, arXiv 2502.16982, table 8; article 11267',
    'updates of RMS 0.2: what Adam has, and where Muon is best',
    '1',
    '5',
  ),
  'weight_decay_muon': Figure(
    'Moonlight, arXiv 2502.16982, fig. 2; articles 10739, 11307',
    'Muon without weight decay is ahead, then behind',
    '1',
    '6',
  ),
  'softsign_epsilon': Figure(
    'article 10563',
    'the epsilon of Adam leads from the sign to gradient descent',
    '1',
    '5',
  ),
  'descent_clip': Figure(
    'article 10657',
    'a limit on the predicted decrease makes warmup needless',
    '1.5',
    '6',
  ),
  'spectral_decay': Figure(
    'article 10648',
    'decay of the largest singular value alone is as good as L2, or better',
    '1.5',
    '6',
  ),
  'lowrank_error': Figure(
    'articles 10407, 10501, 10662; Halko et al., arXiv 0909.4061',
    'randomized SVD at the optimum, columns within twice of it, CUR near',
    '1',
    '4',
  ),
  'column_row_variance': Figure(
    'Drineas et al., SICOMP 36, 2006, lemma 4; article 10427',
    'sampled products on their exact curves; fast, and good where data agree',
    '1',
    '4',
  ),
  'cur_bounds': Figure(
    'DEIM-CUR, arXiv 1407.5516, theorem 4.1; article 10662',
    'errors of CUR stay below their computable bounds, near the optimum',
    '1',
    '4',
  ),
  'cur_retrieval': Figure(
    'ANNCUR and ADACUR, arXiv 2210.12579, 2305.02996; articles 9336, 8180',
    'CUR in rounds finds 90 % of the ten best keys with 3 % of the calls',
    '1',
    '2.5',
  ),
  'interpolative_selection': Figure(
    'article 10501; Osinsky, arXiv 2308.09068; Gu and Eisenstat, 1996',
    "Osinsky's columns: a quarter less error than SciPy's at 1/6 of the time",
    '1',
    '4',
  ),
  'lora_alignment': Figure(
    'LoRA-GA, LoRA-Pro, arXiv 2407.05000, 2407.18242; articles 10226, 10266',
    'LoRA-GA needs half the steps of LoRA, LoRA-Pro ends lowest',
    '1.5',
    '8',
  ),
  'surge': Figure(
    'Surge phenomenon, arXiv 2405.14578; article 10542',
    'the best rate of the sign should fall for large batches; it rises',
    '1',
    '10',
  ),
  'sgd_batch_size': Figure(
    'McCandlish et al., arXiv 1812.06162, fig. 1 to 5; article 10542',
    'the best step of SGD is eta_max / (1 + B_noise / B), steps a hyperbola',
    '1',
    '8',
  ),
  'epsilon_scaling': Figure(
    'article 10563',
    'single steps have no surge to remove; in training epsilon removes one',
    '1',
    '11',
  ),
  'adam_hessian': Figure(
    'article 10588',
    "Adam's sqrt(v) goes with |H_ii| to the power 1/2, not 1",
    '1',
    '4',
  ),
  'clip_norm': Figure(
    'article 10657',
    'the best rate of the sign falls like N^(-1/2), that of descent does not',
    '1',
    '3',
  ),
  'noise_scale': Figure(
    'McCandlish et al., arXiv 1812.06162, fig. 4; articles 10542, 10588',
    'the noise scale grows along a run; batch sizes agree on it',
    '1',
    '7',
  ),
  'batch_size_advisor': Figure(
    'arXiv 1812.06162, 2205.10287; articles 10542, 11280',
    'the learning rate for 4 and 16 times the batch, from one tracked run',
    '1',
    '9',
  ),
  'gradient_field': Figure(
    'rotation trick, arXiv 2410.06424, fig. 3 to 5; articles 10489, 11328',
    'push and pull of every estimator by exact formulas; none in the plane',
    '0.2',
    '0.3',
  ),
  'rotation_trick': Figure(
    'rotation trick, arXiv 2410.06424, tables 1 to 3; articles 10489, 9826',
    'rotation saves learned codes that start short, breaks long, else no gain',
    '1.5',
    '10.5',
  ),
  'vq_prior': Figure(
    'VQ-VAE, arXiv 1711.00937; articles 9826, 10489, 10519, 11328',
    'by the samples of a prior DiVeQ and FSQ lead; usage is not information',
    '1.5',
    '14',
  ),
  'codebook_usage': Figure(
    'FSQ, arXiv 2309.15505, fig. 3; SimVQ, 2411.02038; articles 9826, 10757',
    'revival keeps 4096 codes in use, a bias 1024; the rotation trick does not',
    '1.5',
    '12',
  ),
  'moe_balancing': Figure(
    'loss-free balancing, arXiv 2408.15664; articles 10735, 10757, 11619',
    'a bias that only chooses balances experts at no cost in the loss',
    '1.5',
    '10',
  ),
  'assignment': Figure(
    'articles 10757, 11619; Jonker and Volgenant, Computing 38, 1987',
    'turns of the bias get near the optimum, shortest paths settle the rest',
    '1',
    '4',
  ),
  'moe_geometry': Figure(
    'article 10699; MoEfication, arXiv 2110.01786',
    'the longest vectors are nearly the best, and a router finds them',
    '1.5',
    '6',
  ),
  'moe_scaling': Figure(
    'DeepSeekMoE, arXiv 2401.06066; articles 10699, 10757',
    'at equal active parameters experts lower the loss, ever less by number',
    '1.5',
    '14',
  ),
  'ddpm_samples': Figure(
    'DDPM, arXiv 2006.11239, fig. 5; DDIM, 2010.02502; guidance, 2207.12598',
    'a diffusion model of minutes: DDIM in few steps, guidance, bits by step',
    '2',
    '24',
  ),
  'ddcm_codebook_size': Figure(
    'DDCM, arXiv 2502.01189, fig. 3; article 10711',
    '64 atoms a step generate like DDPM; the distance falls like 1/K',
    '2',
    '8',
  ),
  'ddcm_restoration': Figure(
    'DDCM, arXiv 2502.01189; article 10711',
    'restored images are codes, which decode without the measurement',
    '1.5',
    '5',
  ),
  'ddcm_robustness': Figure(
    'bit flips, arXiv 2604.05743; Turbo-DDCM, 2511.06424',
    'wrong bits cost codes quality, not images; single indices lose least',
    '1',
    '4',
  ),
  'ddcm_rate_distortion': Figure(
    'DDCM, arXiv 2502.01189, fig. 5; Turbo-DDCM, 2511.06424; article 10711',
    'equal-KL timesteps are worth 2 to 11 dB from half a bit a pixel on',
    '1.5',
    '9',
  ),
  'ddcm_progressive': Figure(
    'DDCM, arXiv 2502.01189; DiffC, 2501.09815; article 10711',
    'prefixes of equal KL are as good as codes of their bits; of even, not',
    '1',
    '1.5',
  ),
  'softsign_moments': Figure(
    'articles 10563, 11280',
    'approximate moments are off by up to 0.25; the surge outlives them',
    '0.2',
    '1',
  ),
}
DEFAULT = 'muon_vs_adamw'
PRESETS = ('quick', 'full')


def load(name: str) -> ModuleType:
  """Imports the module of a figure."""
  require_one_of('figure', name, [*FIGURES])
  return importlib.import_module(f'.{name}', __package__)


def default_config(name: str, preset: str = 'quick'):
  """A fresh `Config` of a figure.

  >>> default_config('muon_vs_adamw').dataset
  'kjv'
  """
  require_one_of('preset', preset, PRESETS)
  config = load(name).Config
  return config() if preset == 'quick' else config.full()


def table() -> str:
  """The figures, one to a line: name, paper, claim and minutes."""
  rows = [('figure', 'paper', 'claim', 'quick', 'full')]
  for name, figure in FIGURES.items():
    *about, quick, full = figure
    rows.append((name, *about, f'{quick} min', f'{full} min'))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  padded = [map(str.ljust, row, widths) for row in rows]
  return '\n'.join('  '.join(cells).rstrip() for cells in padded)
