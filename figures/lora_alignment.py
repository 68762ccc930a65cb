"""Low-rank adapters, and how near they come to full fine-tuning.

Papers: LoRA-GA, arXiv 2407.05000 (2 to 4 times faster than LoRA); LoRA-Pro,
arXiv 2407.18242 (best of the adapters); PiSSA, arXiv 2404.02948. Articles 10226
and 10266 of kexue.fm.

What should be seen: the first step of SGD from LoRA-GA's start misses of the
full gradient its singular values past 2 r and no more, exactly; while training,
steps of LoRA-Pro lie closest to the gradient. With SGD that pays, and with Adam
on the digits: LoRA-GA needs a quarter and half of LoRA's steps, LoRA-Pro with
SGD a fifth. With Adam on the text it hardly does: LoRA's best learning rate is
larger, which makes up for its start, and all adapters end close together, above
full fine-tuning.

How: a byte language model pretrained on one text adapts to another; a network
of three layers pretrained on digits adapts to turned ones, judged by its
training loss. Adapters of one rank on every matrix of the layers, for full
fine-tuning these matrices alone, everything else frozen; one schedule, no
weight decay; each contestant tuned over the grid drawn by the mean over `seeds`
seeds: all rates run with the first seed, with all seeds what leads by then,
until it leads still. Seeds have common batches. The target, chosen beforehand,
is the final loss of LoRA with the same seed. LoRA-GA has the scale "gd",
LoRA-Pro starts as LoRA-GA. The cosine is that of the step and the gradient of
the same batch.

What is not reproduced: LoRA-Pro is not lowest. PiSSA is, with SGD and on the
digits. At twice its best rate with SGD, LoRA-Pro ends lowest for three seeds,
2.21, and diverges for two.

Expected: steps of LoRA-GA over LoRA's 0.27 for SGD, 0.54 on the digits, 0.94
for Adam on the text. Cost on two CPU cores: quick 1.5 minutes, full 8 minutes.
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..models.transformer import TransformerConfig
from ..optimizers import lora_pro
from ..training.data import load
from ..training.schedules import schedule
from . import lora_panels
from .adaptation import Adaptation, digits_adaptation, text_adaptation
from .adapter_training import (
  AdapterTraining,
  cosine,
  make_adapters,
  mean_gradient,
  pairs_of,
  pulled_back,
  pushed_forward,
)
from .comparison import Row, by_run
from .language_model import TaskConfig
from .lora_contest import (
  CONTESTANTS,
  SETTINGS,
  STARTS,
  best_rate,
  headline,
  names_in,
)
from .session import Session, session

MOSAIC = [
  ['adam', 'sgd', 'digits'],
  ['adam_rates', 'sgd_rates', 'digits_rates'],
  ['misalignment', 'cosine', 'steps'],
]


@dataclasses.dataclass
class Config(TaskConfig):
  """What the figure trains, besides what `TaskConfig` says.

  Args:
    target: the text to which the model adapts.
    rank: of every adapter.
    ranks: for the first step.
    sgd_rates: the grid of SGD; `learning_rates` are those of Adam on the text.
    digits_rates: the grid on the digits.
    digits_steps: of a run on the digits.
    pretraining_steps: of the model on `dataset`.
    pretraining_rate: of AdamW there.
    gradient_batches: of the gradient that LoRA-GA starts from.
  """

  target: str = 'wikipedia'
  width: int = 32
  batch_size: int = 16
  steps: int = 80
  learning_rates: tuple[float, ...] = (0.016, 0.032, 0.064, 0.128)
  sgd_rates: tuple[float, ...] = (1.0, 2.0, 4.0)
  digits_rates: tuple[float, ...] = (0.016, 0.032, 0.064)
  digits_steps: int = 120
  rank: int = 4
  ranks: tuple[int, ...] = (1, 4)
  pretraining_steps: int = 200
  pretraining_rate: float = 0.03
  gradient_batches: int = 8
  log_points: int = 5
  validation_windows: int = 64

  @classmethod
  def full(cls) -> 'Config':
    """Twice the width and the steps, wider grids, five seeds."""
    return cls(
      width=64,
      steps=200,
      learning_rates=(0.008, 0.016, 0.032, 0.064, 0.128),
      sgd_rates=(0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0),
      digits_rates=(0.008, 0.016, 0.032, 0.064, 0.128),
      digits_steps=400,
      ranks=(1, 2, 4, 8, 16),
      pretraining_steps=1500,
      seeds=5,
      log_points=20,
      validation_windows=128,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    for name in ('sgd_rates', 'digits_rates', 'pretraining_rate'):
      self.require_every(name, lambda x: x > 0, 'positive numbers')
    largest = min(self.width, 10)  # Of the ten digits.
    within = f'in 1..{largest}'
    self.require_every('rank', lambda r: 1 <= r <= largest, within)
    within = f'in 1..{self.width}'
    self.require_every('ranks', lambda r: 1 <= r <= self.width, within)
    enough = f'at least the {self.log_points} log points'
    for name in ('digits_steps', 'pretraining_steps'):
      self.require_every(name, lambda x: x >= self.log_points, enough)
    self.require_every('gradient_batches', lambda x: x >= 1, '1 or more')
    load(self.target, data_dir=data_dir)

  @property
  def sizes(self) -> TransformerConfig:
    """The model, its layers stacked: less to compile."""
    return dataclasses.replace(super().sizes, scan_layers=True)

  def rates(self, setting: str) -> tuple[float, ...]:
    """The grid of a setting."""
    return {
      'adam': self.learning_rates,
      'sgd': self.sgd_rates,
      'digits': self.digits_rates,
    }[setting]

  def length_of(self, setting: str) -> int:
    """Steps of a run."""
    return self.digits_steps if setting == 'digits' else self.steps


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Pretrains, adapts in every way and returns a row for each log point."""
  c = config
  with session(workdir, key, _total_steps(c)) as launch:
    tasks = _tasks(c, launch, parallel, data_dir)
    first_steps = lambda: _first_steps(c, tasks['text'], key)
    launch.record('first', len(STARTS) * len(c.ranks), first_steps)
    for setting, about in SETTINGS.items():
      contest = Contest(c, launch, tasks[about.task], setting, parallel)
      for name in names_in(setting):
        contest.tune(name)
  return launch.records.rows


def _total_steps(c: Config) -> int:
  """Steps of the runs that are sure to come, for the progress bar."""
  total = 2 * c.pretraining_steps
  for setting in SETTINGS:
    runs = len(names_in(setting)) * (len(c.rates(setting)) + c.seeds - 1)
    total += runs * c.length_of(setting)
  return total


def _tasks(c: Config, launch, parallel, data_dir) -> dict[str, Adaptation]:
  """The two models, pretrained."""
  options = dict(steps=c.pretraining_steps, parallel=parallel)
  text = text_adaptation(
    launch,
    c.task(data_dir),
    dataclasses.replace(c, dataset=c.target).task(data_dir),
    learning_rate=c.pretraining_rate,
    **options,
  )
  digits = digits_adaptation(launch, learning_rate=0.003, **options)
  return {'text': text, 'digits': digits}


def _first_steps(c: Config, task: Adaptation, key) -> Iterable[Row]:
  """What the first step of SGD misses of the full gradient, by start.

  Of the batches that LoRA-GA starts from, and of others.
  """
  seen, fresh = (
    mean_gradient(task, jax.random.fold_in(key, i), c.gradient_batches)
    for i in (1, 2)
  )
  norm = optax.tree.norm

  @jax.jit
  def missed(adapters, gradient):
    params = pairs_of(adapters)
    step = pulled_back(params, gradient, adapters)
    moved = pushed_forward(params, step, adapters)
    sine = jnp.sqrt(1 - cosine(moved, gradient) ** 2)
    return norm(optax.tree.sub(moved, gradient)) / norm(gradient), sine

  spectra = [np.linalg.svd(g, compute_uv=False) for g in seen.values()]
  for rank in c.ranks:
    tail = sum(np.sum(s[..., 2 * rank :] ** 2) for s in spectra)
    for name, (options, _) in STARTS.items():
      gradient = seen if options['method'] == 'lora_ga' else None
      adapters = make_adapters(task, gradient, rank, key, **options)
      same_rate, best_rate = missed(adapters, seen)
      yield {
        'start': name,
        'rank': rank,
        'missed': same_rate,
        'missed_at_best_rate': best_rate,
        'missed_of_fresh': missed(adapters, fresh)[0],
        'theory': float(np.sqrt(tail) / norm(seen)),
      }


class Contest:
  """All runs of a setting.

  Contestants with the same seed share their batches, and their start if they
  start alike; those with the same variant share a program.
  """

  def __init__(
    self,
    config: Config,
    launch: Session,
    task: Adaptation,
    setting: str,
    parallel: str,
  ):
    self._config, self._launch, self._task = config, launch, task
    self._setting, self._parallel = setting, parallel
    self._trainings: dict[str | None, AdapterTraining] = {}

  def tune(self, name: str) -> None:
    """Every rate with the first seed, with all seeds what leads by then.

    So the best one is the best of all seeds, though few rates run with all.
    """
    seeds = self._config.seeds
    score = lambda rate, seed: self._train(name, rate, seed)['score']
    rates = self._config.rates(self._setting)
    scores = {rate: [score(rate, 0)] for rate in rates}
    ahead = 1  # Rates that `_total_steps` counts with all seeds.
    while len(scores[rate := best_rate(scores)]) < seeds:
      if not ahead:
        steps = (seeds - 1) * self._config.length_of(self._setting)
        self._launch.progress.expect(steps)
      ahead = 0
      scores[rate] += [score(rate, seed) for seed in range(1, seeds)]

  def _training(self, variant: str | None) -> AdapterTraining:
    if variant not in self._trainings:
      steps = self._config.length_of(self._setting)
      direction = SETTINGS[self._setting].direction
      if variant:
        direction = lora_pro(direction, scale=1.0, variant=variant)
      self._trainings[variant] = AdapterTraining(
        self._task,
        direction,
        schedule('cosine', steps=steps, warmup=max(1, steps // 20)),
        steps=steps,
        log_every=max(1, steps // self._config.log_points),
        parallel=self._parallel,
      )
    return self._trainings[variant]

  def _train(self, name: str, rate: float, seed: int) -> Row:
    c, task = self._config, self._task
    start, variant, _ = CONTESTANTS[name]
    key = jax.random.fold_in(self._launch.key, seed)

    def adapters():
      gradient = None
      if start['method'] == 'lora_ga':
        other = jax.random.fold_in(key, 1)
        gradient = mean_gradient(task, other, c.gradient_batches)
      return make_adapters(task, gradient, c.rank, key, **start)

    return self._training(variant).train(
      self._launch,
      f'{self._setting}-{name.replace(" ", "-")}-lr{rate:g}-s{seed}',
      learning_rate=rate,
      key=key,
      adapters=adapters if start else None,
      tags={
        'setting': self._setting,
        'contestant': name,
        'learning_rate': rate,
        'seed': seed,
      },
    )


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the nine panels from the rows and returns the headline numbers."""
  numbers, runs = headline(rows), by_run(rows)
  for setting in SETTINGS:
    lora_panels.curves(axes[setting], runs, numbers, setting)
    lora_panels.rates(axes[f'{setting}_rates'], runs, setting)
  lora_panels.first_steps(axes['misalignment'], runs['first'])
  lora_panels.cosines(axes['cosine'], runs)
  lora_panels.steps(axes['steps'], numbers)
  said = '; '.join(
    f'{SETTINGS[s].title}: {at["mean"]:.2f} ({at["min"]:.2f} to '
    f'{at["max"]:.2f})'
    for s, at in numbers['steps_of_lora_ga_over_lora'].items()
  )
  lowest = '; '.join(
    f'{SETTINGS[s].title}: {name}'
    for s, name in numbers['lowest_adapter'].items()
  )
  axes['adam'].figure.suptitle(
    "steps of LoRA-GA to LoRA's final loss over LoRA's, paper 0.25 to 0.5: "
    f'{said}\nlowest of the adapters: {lowest}'
  )
  return numbers
