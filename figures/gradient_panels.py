"""Panels of `gradient_field`: rows in, axes drawn on."""

import numpy as np
from matplotlib.axes import Axes

from .comparison import Row

COLORS = {
  'ste': 'black',
  'rotation': 'tab:blue',
  'rotation_no_rescale': 'tab:cyan',
  'reflection': 'tab:orange',
  'scaled_rotation': 'tab:green',
  'diveq': 'tab:red',
}
# Some lie on others.
MARKERS = {
  'ste': ('s', 10),
  'rotation': ('o', 10),
  'rotation_no_rescale': ('o', 6),
  'reflection': ('x', 6),
  'diveq': ('+', 8),
}
# The published pictures' kind of plane: codes around the origin, at
# different distances.
CODES = np.array(
  [[1.1, 0.2], [0.2, 1.0], [-0.9, 0.5], [-0.5, -0.9], [0.6, -0.7]]
)
GRADIENT = np.array([0.6, 0.8])


def plot_field(ax: Axes, rows: list[Row], kind: str) -> None:
  """Arrows of one length, their color their length, and the cells."""
  column = lambda name: np.array([row[name] for row in rows])
  u, v = column('u'), column('v')
  length = np.hypot(u, v)
  unit = np.where(length > 0, length, 1)
  arrows = ax.quiver(
    column('x'),
    column('y'),
    u / unit,
    v / unit,
    np.log10(np.maximum(length, 1e-3)),
    cmap='viridis',
    clim=(-0.75, 0.75),
    pivot='middle',
    scale=18,
  )
  ax.figure.colorbar(arrows, ax=ax, label='log10 of |move| / |g|')
  side = np.linspace(-1.6, 1.6, 200)
  points = np.stack(np.meshgrid(side, side), -1)
  cell = np.argmin(np.linalg.norm(points[..., None, :] - CODES, axis=-1), -1)
  ax.contour(
    side, side, cell, np.arange(len(CODES)) + 0.5, colors='silver', linewidths=1
  )
  ax.plot(*CODES.T, 'o', color='tab:red', label='codes')
  ax.plot(0, 0, '+', color='black', label='origin')
  # Down the gradient: what a code itself would do.
  ax.quiver(-1.35, -1.35, *-GRADIENT, color='gray', scale=9, width=0.012)
  ax.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect='equal')
  ax.set(xlabel='z_1', ylabel='z_2', title=kind)
  ax.grid(visible=False)


def plot_lines(
  ax: Axes, rows: list[Row], x: str, name: str, title: str
) -> None:
  """What was measured on the curves of its formula."""
  for kind, color in COLORS.items():
    if kind == 'scaled_rotation':  # 1 / (8 rho^2) times as much: off the scale.
      continue
    own = sorted(
      (row for row in rows if row['kind'] == kind), key=lambda row: row[x]
    )
    unit = own[0]['radius'] ** 2 if name == 'pull' else 1
    at = [row[x] for row in own]
    ax.plot(at, [row[f'{name}_formula'] / unit for row in own], color=color)
    dots = [row[name] / unit for row in own]
    marker, size = MARKERS[kind]
    style = dict(color=color, fillstyle='none', markersize=size)
    ax.plot(at, dots, marker, label=kind, **style)
  ax.axhline(0, color='black', linewidth=0.5)
  if x == 'dim':
    ax.set_xscale('log', base=2)
    ax.xaxis.set_major_formatter('{x:g}')
  labels = {
    'angle': 'angle between gradient and code [degrees]',
    'dim': 'dimension d',
    'pull': 'E[delta . v] / (rho^2 |g| / |q|)',
    'drift': 'E[-g . v] / |g|^2',
  }
  ax.set(xlabel=labels[x], ylabel=labels[name], title=title)
  ax.legend(fontsize='small')
