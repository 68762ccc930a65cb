r"""Push and pull: where each gradient estimator moves the vectors of a code.

Papers: Fifty et al., arXiv 2410.06424, figures 3 to 5; Su, articles 10489 and
11328. A code q gets the gradient g, its vectors z get G^T g and descend, v(z) =
-G^T g. Straight through, a Voronoi cell moves as one. The rotation trick turns
g with the angle between a vector and its code: the field of a cell is part of a
source or a whirl about the origin, and what is pushed is also the distance of
its vectors to each other and to the code.

What should be seen: the fields, how much they pull and where they drift. For
vectors q + delta about a code that stays, delta uniform on a sphere of small
radius rho, half the square of their distance to the code changes on average at
the rate

  E[delta . v] = -(rho^2 / d) c (g . q) / |q|^2,

with c = d - 1 for the rotation without rescaling, d - 2 where |q| / |z|
rescales it or the reflection, (d - 1) / (8 rho^2) for the scaled rotation, and
0 straight through and for DiVeQ, which gives z what is across q - z alone. So
the pull is a cosine: a gradient along the code, which should be shorter, draws
its vectors together, one against it drives them apart. In the plane of the
paper's pictures, d = 2, the rotation trick as published does neither on average
(its field has no divergence there): what it draws together across the code it
drives apart along it. That is not in the paper.

The drift is the mean of v along -g, 1 straight through and for rotations. For a
gradient across the code it is 1 - 2 / (d - 1) under the reflection, -1 in the
plane: up the gradient. DiVeQ keeps 1 - 1 / d for z.

How: no training. In a plane five codes, a grid of vectors, one gradient for all
codes: G^T g by autodiff of `gradient_estimator` against G as an explicit matrix
in float64. Then vectors at plus and minus rho along random orthonormal frames,
autodiff against the formulas, over the angle between g and q and over d.

Expected: matrices within 5e-5, pulls within 1 % of the largest, drifts
within 0.05. Cost on two CPU cores: 15 seconds.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ..models import gradient_estimator
from .checked import CheckedConfig
from .comparison import Row
from .gradient_panels import CODES, COLORS, GRADIENT, plot_field, plot_lines
from .session import session

MOSAIC = [
  ['ste', 'rotation', 'rotation_no_rescale'],
  ['reflection', 'scaled_rotation', 'diveq'],
  ['angle', 'dimension', 'drift'],
]


@dataclasses.dataclass
class Config(CheckedConfig):
  """What is looked at.

  Args:
    grid: vectors along a side of the plane.
    angles: between gradient and code, over a turn.
    dims: in which pull and drift are measured, ascending; in the last also
      over the angles.
    radius: distance of vectors to their code, of length 1.
    frames: orthonormal frames over which the pull is averaged.
  """

  grid: int = 13
  angles: int = 16
  dims: tuple[int, ...] = (2, 3, 4, 8, 16, 32)
  radius: float = 0.05
  frames: int = 16

  @classmethod
  def full(cls) -> 'Config':
    """More vectors, angles and frames."""
    return cls(grid=15, angles=24, dims=(2, 3, 4, 8, 16, 32, 64), frames=64)

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    del data_dir
    self.require_every('grid', lambda x: x >= 2, '2 or more')
    self.require_every('angles', lambda x: x >= 4, '4 or more')
    self.require_every('frames', lambda x: x >= 1, '1 or more')
    rising = list(self.dims) == sorted({*self.dims})
    good = lambda x: rising and x >= 2
    self.require_every('dims', good, '2 or more, ascending')
    self.require_every('radius', lambda x: 0 < x <= 0.2, 'in (0, 0.2]')


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Fields and pulls of every estimator, as rows."""
  del parallel, data_dir
  c = config
  turns = np.arange(c.angles) / c.angles * 360
  dim = c.dims[-1]
  noise = np.float64(jax.random.normal(key, (c.frames, dim, dim)))
  with session(workdir, key, len(COLORS)) as launch:
    for kind in COLORS:
      record = launch.record
      record(f'field-{kind}', c.grid**2, lambda kind=kind: _field(c, kind))
      for dim in c.dims:
        angles = turns if dim == c.dims[-1] else (0.0, 90.0)
        record(
          f'pull-{kind}-d{dim}',
          len(angles),
          lambda kind=kind, dim=dim, angles=angles: _pulls(
            c, noise[:, :dim, :dim], kind, angles
          ),
        )
      launch.progress.advance(1, kind)
  return launch.records.rows


def descent(kind: str, z, q, g) -> np.ndarray:
  """-G^T g by autodiff: where vectors z [n, d] of the codes q are moved."""
  z, q, g = (jnp.asarray(x, jnp.float32) for x in (z, q, g))
  _, pull = jax.vjp(lambda z: gradient_estimator(z, q, kind=kind), z)
  return -np.float64(pull(jnp.broadcast_to(g, z.shape))[0])


def matrix(kind: str, z: np.ndarray, q: np.ndarray) -> np.ndarray:
  """G [d, d] of one pair, as it is defined, in float64.

  The rotation in the plane of z and q from its cosine and sine; for "diveq" the
  derivative of its value in z.

  >>> print(matrix('rotation', np.array([2.0, 0.0]), np.array([0.0, 1.0])))
  [[ 0.  -0.5]
   [ 0.5  0. ]]
  """
  z, q, eye = np.float64(z), np.float64(q), np.eye(len(z))
  length = np.linalg.norm
  a, b, scale = z / length(z), q / length(q), length(q) / length(z)
  if kind == 'ste':
    return eye
  if kind == 'diveq':
    u = (q - z) / length(q - z)
    return eye - np.outer(u, u)
  if kind == 'reflection':
    u = (a - b) / length(a - b)
    return scale * (eye - 2 * np.outer(u, u))
  cosine, across = a @ b, b - (a @ b) * a
  sine = length(across)
  e = across / sine if sine > 0 else across
  plane = np.outer(a, a) + np.outer(e, e)
  turn = cosine * plane + sine * (np.outer(e, a) - np.outer(a, e))
  rotation = eye - plane + turn
  return {
    'rotation': scale,
    'rotation_no_rescale': 1.0,
    'scaled_rotation': 0.125 / length(q - z) ** 2,
  }[kind] * rotation


def pull_by_formula(kind: str, dim: int, cosine, radius: float):
  """E[delta . v] of the module, for codes and gradients of length 1.

  Args:
    kind: of the estimator.
    dim: d.
    cosine: of the angle between gradient and code.
    radius: rho.

  Returns:
    In the shape of the cosine; exact as rho goes to 0.

  Example:
    >>> pull_by_formula('rotation', 2, 1.0, 0.1) == 0
    True
    >>> round(pull_by_formula('rotation_no_rescale', 2, 1.0, 0.1), 6)
    -0.005
  """
  c = {
    'ste': 0.0,
    'rotation': dim - 2.0,
    'rotation_no_rescale': dim - 1.0,
    'reflection': dim - 2.0,
    'scaled_rotation': (dim - 1) / (8 * radius**2),
    'diveq': 0.0,
  }[kind]
  return -(radius**2) / dim * c * cosine


def drift_by_formula(kind: str, dim: int, cosine, radius: float):
  """E[-g . v] of the module, for codes and gradients of length 1.

  >>> float(drift_by_formula('reflection', 2, 0.0, 0.1))
  -1.0
  """
  across = 1 - np.square(cosine)
  return {
    'reflection': 1 - 2 * across / (dim - 1),
    'scaled_rotation': 1 / (8 * radius**2),
    'diveq': 1 - 1 / dim,
  }.get(kind, 1.0)


def measured(
  noise: np.ndarray, kind: str, angle: float, radius: float
) -> dict[str, float]:
  """Pull and drift by autodiff, for codes and gradients of length 1.

  Args:
    noise: Gaussian [frames, d, d]; the frames are those of its QR.
    kind: of the estimator.
    angle: between gradient and code in degrees; the code is along the first
      axis, the gradient in the plane of the first two.
    radius: rho.
  """
  dim = noise.shape[-1]
  delta = radius * np.linalg.qr(noise)[0].reshape(-1, dim)
  delta = np.concatenate([delta, -delta])
  q, g = np.zeros((2, dim))
  q[0] = 1
  g[:2] = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
  v = descent(kind, q + delta, np.broadcast_to(q, delta.shape), g)
  pull = np.mean(np.sum(delta * v, axis=-1))
  return {'pull': float(pull), 'drift': float(-np.mean(v @ g))}


def _field(c: Config, kind: str) -> Iterator[Row]:
  """Vectors of the plane, their code, their move by autodiff and matrix."""
  side = np.linspace(-1.5, 1.5, c.grid) + 0.01  # No vector at the origin.
  z = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
  cell = np.argmin(np.linalg.norm(z[:, None] - CODES, axis=-1), axis=1)
  moves = descent(kind, z, CODES[cell], GRADIENT)
  for point, k, move in zip(z, cell, moves, strict=True):
    exact = -matrix(kind, point, CODES[k]).T @ GRADIENT
    yield {
      'field': kind,
      'x': point[0],
      'y': point[1],
      'cell': int(k),
      'u': move[0],
      'v': move[1],
      'exact_u': exact[0],
      'exact_v': exact[1],
    }


def _pulls(c: Config, noise, kind: str, angles) -> Iterator[Row]:
  """Pull and drift over angles, measured and by formula."""
  dim = noise.shape[-1]
  for angle in angles:
    about = kind, dim, np.cos(np.deg2rad(angle)), c.radius
    yield {
      'kind': kind,
      'dim': dim,
      'angle': angle,
      'radius': c.radius,
      'pull_formula': float(pull_by_formula(*about)),
      'drift_formula': float(drift_by_formula(*about)),
      **measured(noise, kind, angle, c.radius),
    }


def _numbers(rows: list[Row]) -> dict:
  """Of each estimator: errors, pulls over rho^2 |g| / |q|, drifts over |g|.

  A pull is that of a gradient along the code, a drift that of one across.
  """
  numbers = {}
  for kind in COLORS:
    field = [row for row in rows if row.get('field') == kind]
    u = np.array([[row['u'], row['v']] for row in field])
    exact = np.array([[row['exact_u'], row['exact_v']] for row in field])
    lengths = np.linalg.norm(exact, axis=1)
    off = np.linalg.norm(u - exact, axis=1) / np.maximum(lengths, 1e-30)
    own = [row for row in rows if row.get('kind') == kind]
    at = lambda angle, own=own: [row for row in own if row['angle'] == angle]
    error = max(abs(row['pull'] - row['pull_formula']) for row in own)
    largest = max(abs(row['pull_formula']) for row in own)
    unit = own[0]['radius'] ** 2
    numbers[kind] = {
      'largest_error_of_the_field': float(off.max()),
      'longest_move': float(lengths.max()),
      'shortest_move': float(lengths.min()),
      'pull': {str(row['dim']): row['pull'] / unit for row in at(0)},
      'error_of_the_pull': error / (largest or unit),
      'drift': {str(row['dim']): row['drift'] for row in at(90)},
      'error_of_the_drift': max(
        abs(row['drift'] - row['drift_formula']) / max(1, row['drift_formula'])
        for row in own
      ),
    }
  return numbers


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws fields and pulls from the rows and returns the headline numbers."""
  numbers = _numbers(rows)
  for kind in COLORS:
    plot_field(axes[kind], [r for r in rows if r.get('field') == kind], kind)
  found = [row for row in rows if 'kind' in row]
  last = max(row['dim'] for row in found)
  plot_lines(
    axes['angle'],
    [row for row in found if row['dim'] == last],
    'angle',
    'pull',
    f'pull in {last} dimensions: below 0 together (lines: formulas)',
  )
  plot_lines(
    axes['dimension'],
    [row for row in found if row['angle'] == 0],
    'dim',
    'pull',
    'pull of a gradient along the code',
  )
  plot_lines(
    axes['drift'],
    [row for row in found if row['angle'] == 90],
    'dim',
    'drift',
    'drift of vectors whose gradient is across the code',
  )
  field = max(n['largest_error_of_the_field'] for n in numbers.values())
  pull = max(n['error_of_the_pull'] for n in numbers.values())
  axes['ste'].figure.suptitle(
    'where vectors move when all codes get one gradient (gray arrow: down), '
    'and what it does to their distance to the code;\n'
    f'autodiff against matrices: {field:.0e}, against the formulas of the '
    f'pull: {pull:.1%}'
  )
  return numbers
