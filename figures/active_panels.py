"""Numbers and panels of `moe_scaling`: rows in, axes drawn on.

A model is a dense one or a mixture, at the learning rate that was best for the
first seed; its active parameters are those of its feed-forward layers, the
router among them. Points are means of seeds, bars and bands their range.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from .comparison import Row, by_run, grid, spread, tuned
from .panels import STYLES, band, bowl, rate_axis, whiskers

Curve = Sequence[tuple[float, float]]
LOSS = 'held-out loss [nats per byte]'
MARKERS = {1: 'o', 2: '^', 4: 's', 8: 'D'}


class Model(NamedTuple):
  """A model that was trained.

  Attributes:
    about: columns that all of its rows have.
    rates: pairs of learning rate and held-out loss of the first seed.
    ends: rows of the held-out text at the best one, by seed.
    training: rows of these runs, by seed.
    seconds: of a step, the median.
  """

  about: Row
  rates: Curve
  ends: dict[int, Row]
  training: dict[int, list[Row]]
  seconds: float

  @property
  def loss(self) -> dict[str, float]:
    """Held-out loss, over seeds."""
    return spread([row['val_loss'] for row in self.ends.values()])

  @property
  def speed(self) -> float:
    """Tokens of training in a second."""
    return self.about['step_tokens'] / self.seconds

  @property
  def dense(self) -> bool:
    """Whether it has no experts."""
    return self.about['form'] == 'dense'

  @property
  def style(self) -> dict[str, Any]:
    """Color by the number of experts, marker by how many a token gets."""
    shade = 0.1 + 0.16 * np.log2(self.about['experts'])
    color = 'black' if self.dense else colormaps['plasma_r'](min(shade, 1.0))
    hollow = (
      {'markerfacecolor': 'white'} if self.about['form'] == 'plain' else {}
    )
    marker = MARKERS.get(self.about['chosen'], 'v')
    return {'color': color, 'marker': marker, **hollow}


Models = dict[str, Model]


def read_models(rows: list[Row]) -> Models:
  """The models by name, in the order trained."""
  runs = by_run(rows)
  ends = {label: own for label, own in runs.items() if 'val_loss' in own[-1]}
  return {
    name: _read(runs, ends, name)
    for name in dict.fromkeys(row['model'] for row in rows)
  }


def _read(runs: dict[str, list[Row]], ends: dict, name: str) -> Model:
  best = {own[-1]['seed']: own[-1] for own in tuned(ends, model=name)}
  training = {
    seed: runs[row['run'].removesuffix('-held-out')]
    for seed, row in best.items()
  }
  steps = [
    (b['seconds'] - a['seconds']) / (b['step'] - a['step'])
    for own in training.values()
    for a, b in itertools.pairwise(own)
  ]
  about = next(iter(best.values()))
  return Model(about, grid(ends, model=name), best, training, np.median(steps))


def dense_curve(models: Models, seed: int | None = None) -> Curve:
  """Active parameters and loss of the dense models, of a seed or the mean."""
  own = [m for m in models.values() if m.dense]
  read = lambda m: m.loss['mean'] if seed is None else m.ends[seed]['val_loss']
  return [
    (m.about['active'], read(m)) for m in own if seed is None or seed in m.ends
  ]


def loss_at(curve: Curve, active: float) -> float | None:
  """Loss of a dense model, between those that were trained.

  Args:
    curve: active parameters, ascending, and losses.
    active: parameters.

  Returns:
    Linear in the logarithm of the parameters; `None` outside.

  Example:
    >>> curve = [(100, 2.0), (400, 1.0)]
    >>> round(loss_at(curve, 200), 3), loss_at(curve, 401)
    (1.5, None)
  """
  at, losses = np.array(curve, float).T
  if not at[0] <= active <= at[-1]:
    return None
  return float(np.interp(np.log(active), np.log(at), losses))


def active_at(curve: Curve, loss: float) -> float | None:
  """Active parameters of a dense model, the first one to come down to a loss.

  Args:
    curve: active parameters, ascending, and losses.
    loss: to be met.

  Returns:
    The inverse of `loss_at`; `None` for what no trained one has.

  Example:
    >>> curve = [(100, 2.0), (400, 1.0), (800, 1.2)]
    >>> round(active_at(curve, 1.5)), active_at(curve, 0.9)
    (200, None)
  """
  for (a, above), (b, below) in itertools.pairwise(curve):
    if above >= loss >= below:
      share = (above - loss) / (above - below) if above > below else 0.0
      return float(a * (b / a) ** share)
  return None


def results(rows: list[Row]) -> dict:
  """All models, and what mixtures gain over dense ones."""
  models = read_models(rows)
  first = next(iter(models.values()))
  return {
    'dataset': first.about['dataset'],
    'steps': first.training[0][-1]['step'],
    'models': {name: _numbers(m) for name, m in models.items()},
    'mixtures': {
      name: _gains(models, m) for name, m in models.items() if not m.dense
    },
    'lowest_dense': min(loss for _, loss in dense_curve(models)),
    'runs_that_diverged': sum(row.get('val_loss') == np.inf for row in rows),
  }


def _numbers(model: Model) -> dict:
  ends = model.ends.values()
  numbers = {
    'active': model.about['active'],
    'total': model.about['total'],
    'active_all': model.about['active_all'],
    'total_all': model.about['total_all'],
    'val_loss': model.loss,
    'learning_rate': next(iter(ends))['learning_rate'],
    'losses_of_rates': dict(model.rates),
    'tokens_per_second': model.speed,
  }
  if not model.dense:
    numbers['violation'] = spread([row['violation'] for row in ends])
  return numbers


def _gains(models: Models, model: Model) -> dict:
  """Against the dense curve of the same seeds, which have the same batches.

  What is not bounded by dense models, of whatever seed, is `None`; a loss below
  all of theirs makes `dense_times` a lower bound, that of the widest one.
  """
  active, gains, times, below = model.about['active'], [], [], False
  for seed, row in model.ends.items():
    curve, loss = dense_curve(models, seed), row['val_loss']
    dense, equal = loss_at(curve, active), active_at(curve, loss)
    if loss < min(x for _, x in curve):
      below, equal = True, curve[-1][0]
    gains.append(None if dense is None else dense - loss)
    times.append(None if equal is None else equal / active)
  whole = lambda values: None if None in values else spread(values)
  return {
    'gain': whole(gains),
    'dense_times': whole(times),
    'dense_times_are_more': below,
  }


def plot_loss(ax: Axes, models: Models, column: str) -> None:
  """Loss against parameters; lines join dense models, and those of equal n.

  Args:
    ax: where.
    models: all.
    column: "active", or "total", where lines join those of equal k.
  """
  common = 'experts' if column == 'active' else 'chosen'
  for key, own in _grouped(models, common).items():
    own = sorted(own, key=lambda m: m.about[column])
    x = [m.about[column] / 1e3 for m in own]
    mean, error = whiskers([m.loss for m in own])
    color = own[0].style['color'] if column == 'active' else 'tab:gray'
    joined = 'black' if own[0].dense else color
    ax.plot(x, mean, color=joined, linewidth=1, zorder=1)
    for i, model in enumerate(own):
      label = _said(key, common) if i == 0 and column == 'active' else None
      style = dict(linestyle='', capsize=3, label=label, **model.style)
      ax.errorbar(x[i], mean[i], error[:, i : i + 1], **style)
      _annotate(ax, model, (x[i], mean[i]))
  ax.set_xscale('log', base=2)
  ax.xaxis.set_major_formatter('{x:g}')
  ax.set(
    xlabel=f'{column} parameters of feed-forward layers [thousands]',
    ylabel=LOSS,
    title={
      'active': 'k of n experts and dense models, by what a token uses',
      'total': 'by all there is; grey lines: equal k',
    }[column],
  )
  if column == 'active':
    ax.legend(fontsize='x-small')


def _grouped(models: Models, common: str) -> dict[tuple, list[Model]]:
  """Models of the same form and the same `common`, "experts" or "chosen"."""
  found: dict[tuple, list[Model]] = {}
  for model in models.values():
    key = model.about['form'], model.about[common]
    found.setdefault(key, []).append(model)
  return found


def _said(key: tuple, common: str) -> str:
  """Of a group, in the legend."""
  form, number = key
  if form == 'dense':
    return 'dense'
  text = f'k of {number}' if common == 'experts' else f'{number} of n'
  return text if form == 'normalized' else f'{text}, {form} experts'


def _short(model: Model) -> str:
  """Beside a point: hidden width, or experts and how many of them."""
  about = model.about
  if model.dense:
    return str(about['hidden'])
  return f'{about["chosen"]}/{about["experts"]}'


def _annotate(
  ax: Axes, model: Model, at: tuple[float, float], text: str | None = None
) -> None:
  """Says what a point is, above dense models and below mixtures."""
  where = ((4, 4), 'left') if model.dense else ((-4, -10), 'right')
  offset = dict(xytext=where[0], ha=where[1], textcoords='offset points')
  ax.annotate(text or _short(model), at, fontsize=7, color='dimgray', **offset)


def plot_gain(ax: Axes, models: Models, numbers: dict) -> None:
  """Gain over a dense model of equal active parameters, against n.

  Args:
    ax: where.
    models: all.
    numbers: of `results`, which say the gains.
  """
  mixtures = {k: m for k, m in models.items() if not m.dense}
  for key, own in _grouped(mixtures, 'chosen').items():
    named = {id(m): numbers['mixtures'][name] for name, m in mixtures.items()}
    own = [m for m in own if named[id(m)]['gain']]
    if not own:
      continue
    own = sorted(own, key=lambda m: m.about['experts'])
    mean, error = whiskers([named[id(m)]['gain'] for m in own])
    x = [m.about['experts'] for m in own]
    dashes = ':' if key[0] == 'plain' else '-'
    style = dict(marker=own[0].style['marker'], capsize=3, linestyle=dashes)
    ax.errorbar(x, mean, error, label=_said(key, 'chosen'), **style)
    for at, model in zip(zip(x, mean, strict=True), own, strict=True):
      found = spread([row['violation'] for row in model.ends.values()])
      _annotate(ax, model, at, f'{found["mean"]:.2f}')
  ax.axhline(0, color='grey', linestyle=':')
  ticks = sorted({m.about['experts'] for m in mixtures.values()})
  ax.set_xscale('log', base=2)
  ax.set_xticks(ticks, [str(n) for n in ticks])
  ax.set(
    xlabel='experts n',
    ylabel='loss below dense [nats per byte]',
    title='gain at equal active parameters; at the points MaxVio',
  )
  ax.margins(x=0.2)
  ax.legend(fontsize='x-small')


def plot_steps(ax: Axes, models: Models) -> None:
  """Training loss less that of the dense model as wide as k experts.

  Args:
    ax: where.
    models: all; mixtures without such a dense model are left out.
  """
  widths = {m.about['hidden']: m for m in models.values() if m.dense}
  for name, model in models.items():
    width = model.about['chosen'] * model.about['hidden']
    if model.dense or width not in widths:
      continue
    other = widths[width].training
    less = [
      [
        {'step': a['step'], 'loss': a['loss'] - b['loss']}
        for a, b in zip(own, other[seed], strict=True)
        if a['step'] > own[-1]['step'] / 10  # Warmed up.
      ]
      for seed, own in model.training.items()
      if seed in other
    ]
    style = {'color': model.style['color'], 'label': f'{name} - dense {width}'}
    style['linestyle'] = STYLES[int(np.log2(model.about['chosen'])) % 4]
    if model.about['form'] == 'plain':
      style['color'] = 'tab:gray'
    if less:
      band(ax, less, 'loss', **style)
  ax.axhline(0, color='grey', linestyle=':')
  ax.margins(y=0.2)
  ax.set(
    xlabel='steps',
    ylabel='difference of training losses [nats per byte]',
    title='against the dense model as wide as k experts: same batches',
  )
  ax.legend(fontsize='xx-small', ncols=3, loc='upper center')


def plot_speed(ax: Axes, models: Models) -> None:
  """Loss against tokens of training in a second.

  Args:
    ax: where.
    models: all.
  """
  for model in models.values():
    x, (mean, error) = model.speed / 1e3, whiskers([model.loss])
    style = dict(linestyle='', capsize=3, **model.style)
    ax.errorbar(x, mean[0], error, **style)
    _annotate(ax, model, (x, mean[0]))
  ax.set(
    xlabel='thousand tokens of training in a second',
    ylabel=LOSS,
    title='by speed on this machine',
  )


def plot_rates(ax: Axes, models: Models) -> None:
  """Loss against learning rate, first seed.

  Args:
    ax: where.
    models: all.
  """
  for name, model in models.items():
    dashes = {'dense': '--', 'plain': ':'}.get(model.about['form'], '-')
    color = model.style['color']
    bowl(ax, model.rates, color=color, linestyle=dashes, label=name)
  rates = [rate for model in models.values() for rate, _ in model.rates]
  rate_axis(ax, rates, 'learning rates, first seed')
  ax.set_xlim(right=2.5 * max(rates))  # Room for the legend.
  ax.set_ylabel(LOSS)
  ax.legend(fontsize='x-small', loc='upper right')
