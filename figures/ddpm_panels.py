"""Panels of `ddpm_samples`, and its numbers: rows in, axes drawn on."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .comparison import Row
from .rotation_panels import image_of

COLORS = {'DDPM': 'tab:blue', 'DDIM': 'tab:orange'}
# Parts of the bound, from the bottom.
PARTS = {'decoder': '0.6', 'kl': 'tab:green', 'prior': 'black'}
FRECHET = 'Fréchet distance [variance of real features]'


def of_run(rows: list[Row], run: str) -> list[Row]:
  """Its rows in order."""
  return [row for row in rows if row['run'] == run]


def drawn(rows: list[Row]) -> list[Row]:
  """Rows of sets of samples."""
  return [row for row in rows if 'sampler' in row]


def results(rows: list[Row]) -> dict[str, Any]:
  """The headline numbers.

  Args:
    rows: of a run.

  Returns:
    The parts of bits per dimension by the longest schedule; scores of real
    images; every set's scores; the sets of least Fréchet distance and of most
    images recognised; size of the model and name of the data.
  """
  scores = ('frechet', 'extrapolated', 'accuracy')
  keep = lambda row, *names: {name: row[name] for name in names}
  sets = [
    keep(row, 'sampler', 'steps', 'guidance', *scores) for row in drawn(rows)
  ]
  bounds = [row for row in rows if row['run'].startswith('bits-')]
  longest = max(bounds, key=lambda row: row['steps'])
  (real,) = of_run(rows, 'real')
  first = of_run(rows, 'information')[0]
  training = of_run(rows, 'model')
  return {
    'bits_per_dim': keep(longest, 'total', *PARTS),
    'real': keep(real, *scores),
    'sets': sets,
    'best': min(sets, key=lambda row: row['frechet']),
    'best_accuracy': max(sets, key=lambda row: row['accuracy']),
    'val_loss': training[-1]['val_loss'] if training else None,
    'parameters': first['parameters'],
    'dataset': first['dataset'],
  }


def plot_training(ax: Axes, rows: list[Row]) -> None:
  """Losses along the run, or that there was none."""
  training = of_run(rows, 'model')
  steps = [row['step'] for row in training]
  for column, label in (('loss', 'training'), ('val_loss', 'held out')):
    ax.plot(steps, [row[column] for row in training], '.-', label=label)
  if training:
    minutes = training[-1]['seconds'] / 60
    title = f'training of {minutes:.1f} minutes'
    ax.set(yscale='log')
    ax.yaxis.set_major_formatter('{x:g}')
    ax.yaxis.set_minor_formatter('{x:g}')
    ax.legend()
  else:
    title = 'a model of another run: no training'
  ax.set(
    xlabel='steps', ylabel='error of the noise [square a pixel]', title=title
  )


def plot_information(ax: Axes, rows: list[Row]) -> None:
  """Nats that a step tells about an image."""
  own = of_run(rows, 'information')
  t = [row['timestep'] + (row['width'] - 1) / 2 for row in own]
  nats = [row['nats'] / row['width'] for row in own]
  ax.plot(t, nats)
  total = sum(row['nats'] for row in own) / math.log(2)
  half = next(row['timestep'] for row in own if row['bits_above'] < total / 2)
  ax.axvline(half, color='0.6', linestyle=':')
  ax.annotate(
    f'  half of {total:.0f} bits\n  below t = {half}', (half, max(nats) / 4)
  )
  ax.set(
    xscale='log',
    yscale='log',
    xlabel='timestep t',
    ylabel='KL of a step [nats an image]',
    title='what each step tells about an image',
  )


def plot_rate_distortion(ax: Axes, rows: list[Row]) -> None:
  """Error of the predicted image against the bits of all steps before."""
  own = of_run(rows, 'information')
  bits = np.array([row['bits_above'] for row in own]) / own[0]['dimensions']
  psnr = [10 * math.log10(4 / row['error']) for row in own]
  ax.plot(bits, psnr, '.-', markersize=3)
  for level in (0.1, 0.5, 1.0):
    if min(bits) < level < max(bits):
      at = np.interp(level, bits[::-1], psnr[::-1])
      ax.plot(level, at, 'o', color='tab:red')
      ax.annotate(f'  {at:.1f} dB at {level:g}', (level, at), va='top')
  ax.set(
    xlabel='bits per dimension told so far',
    ylabel='PSNR of the predicted image [dB]',
    title='rate and distortion of an ideal code of its steps',
  )


def plot_steps(ax: Axes, rows: list[Row]) -> None:
  """Distance to real images against the number of steps."""
  for name, color in COLORS.items():
    own = sorted(
      (row['steps'], row['frechet'])
      for row in drawn(rows)
      if row['sampler'] == name and row['guidance'] == 1
    )
    ax.plot(*zip(*own, strict=True), 'o-', color=color, label=name)
  (real,) = of_run(rows, 'real')
  ax.axhline(real['frechet'], color='0.5', linestyle=':')
  ax.annotate(
    'real images', (own[0][0], real['frechet']), va='bottom', fontsize='small'
  )
  ax.set(xscale='log', yscale='log')
  ticks = sorted({row['steps'] for row in drawn(rows)})
  ax.set_xticks(ticks, [f'{n}' for n in ticks])
  ax.set_xticks([], minor=True)
  ax.yaxis.set_major_formatter('{x:g}')
  ax.yaxis.set_minor_formatter('{x:g}')
  ax.set(xlabel='steps', ylabel=FRECHET, title='samples without guidance')
  ax.legend()


def plot_guidance(ax: Axes, rows: list[Row]) -> None:
  """Distance and share recognised against the scale of the guidance."""
  scaled = [row for row in drawn(rows) if row['guidance'] > 1]
  steps = scaled[0]['steps'] if scaled else None
  own = sorted(
    (row['guidance'], row['accuracy'], row['frechet'])
    for row in drawn(rows)
    if row['sampler'] == 'DDIM' and row['steps'] == steps
  )
  for scale, accuracy, distance in own:
    ax.annotate(f'  {scale:g}', (accuracy, distance))
  ax.plot([x[1] for x in own], [x[2] for x in own], 'o-', color=COLORS['DDIM'])
  (real,) = of_run(rows, 'real')
  ax.plot(real['accuracy'], real['frechet'], 'k*', markersize=12)
  ax.annotate('  real images', (real['accuracy'], real['frechet']))
  ax.margins(0.2)
  ax.set(
    xlabel='share taken for the class they should be',
    ylabel=FRECHET,
    title=f'scale of guidance (numbers), DDIM of {steps} steps',
  )


def plot_bits(ax: Axes, rows: list[Row]) -> None:
  """Bits per dimension and its parts by the number of steps."""
  own = [row for row in rows if row['run'].startswith('bits-')]
  own = sorted(own, key=lambda row: row['steps'])
  left = np.zeros(len(own))
  for part, color in PARTS.items():
    values = np.array([row[part] for row in own])
    ax.barh(range(len(own)), values, left=left, color=color, label=part)
    left += values
  for i, row in enumerate(own):
    ax.annotate(f' {row["total"]:.2f}', (row['total'], i), va='center')
  ax.set_yticks(range(len(own)), [f'{row["steps"]}' for row in own])
  ax.margins(x=0.15)
  ax.set(
    ylim=(-0.6, len(own) + 0.1),  # Room for the legend.
    xlabel='bits per dimension',
    ylabel='steps',
    title='bound on the likelihood',
  )
  ax.legend(ncols=3, loc='upper center')


def plot_images(ax: Axes, rows: list[Row]) -> None:
  """A row of images for each sampler at its best and for guidance."""
  strips = {'real, held out': of_run(rows, 'real')[0]}
  for name in COLORS:
    own = [r for r in drawn(rows) if r['sampler'] == name]
    plain = [r for r in own if r['guidance'] == 1]
    for row in (plain[0], max(plain, key=lambda r: r['steps'])):
      strips[f'{name}, {row["steps"]} steps'] = row
    for row in [r for r in own if r['guidance'] > 1][::2]:
      strips[f'{row["steps"]} steps, guidance {row["guidance"]:g}'] = row
  tiles = np.concatenate([image_of(row) for row in strips.values()])
  ax.imshow(tiles, cmap='gray_r', vmin=0, vmax=255, interpolation='nearest')
  side = len(tiles) / len(strips)
  ax.set_yticks((np.arange(len(strips)) + 0.5) * side, [*strips])
  ax.set_xticks([])
  ax.grid(visible=False)
  ax.tick_params(length=0)
  ax.set(title='real images, and samples for the same classes')
