r"""Retrieval with an expensive scorer, and attention, through CUR.

Paper: Yadav et al., ANNCUR, arXiv 2210.12579, and ADACUR, arXiv 2305.02996;
Xiong et al., Nystromformer, arXiv 2102.03902; Su, articles 9336, 8180, 10662.
ADACUR finds the neighbours of a cross-encoder with fewer calls than ANNCUR, and
that with fewer than a cheap encoder whose candidates are scored again.

What should be seen: recall of the ten best keys against scorer calls a query.
The scorer compares two digits at every shift and rotation of one of them, 245
inner products a call, and is no inner product itself; its matrix falls quickly
to a tenth and slowly from there. CUR in rounds needs a third of the calls of
candidates by pixels, fewer still if it starts from these, and CUR in one round
lies between; the estimates alone are no good. Below: the output of Nystrom's
attention against that of softmax attention, on the heads of a trained
transformer, where nothing was trained to fit it: it is far from the best matrix
of the same rank, though closer than attention to means of keys and values, and
the exact pseudo-inverse is worse than zeros. Six iterations of the paper's
regularise.

How: the scores of all pairs are computed once and looked up by number, which
changes no result and no count of calls. Bands: range over draws of anchors and
queries. The anchors' calls, once for all queries, are not in the count; what
they teach is given to a cheap encoder too, kernel ridge regression from pixels
to their scores. Attention: without the causal mask the model was trained with,
as means of segments cannot have one; the error of the output relative to it.

Expected: 90 % of the ten best of 2,000 keys with 64 calls (43 from the nearest
in pixels, 186 for these alone). Cost on two CPU cores: quick 1 minute, full 2.5
minutes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import require
from ..lowrank import cur_index, cur_search
from ..training.data import load
from . import attention_error
from .best_match import best_match
from .checked import CheckedConfig
from .comparison import by_run, crossing, spread
from .session import Session, session

MOSAIC = [['recall', 'spectrum'], ['recall', 'attention']]
TOP = 10
TARGET = 0.9
METHODS = {  # Label, colour.
  'pixels': ('nearest in pixels, rescored', 'tab:gray'),
  'regression': ('regression on anchors, rescored', 'tab:brown'),
  'estimate': ('CUR, landmarks alone', 'tab:green'),
  'one_round': ('CUR, rescored at once (like ANNCUR)', 'tab:orange'),
  'rounds': ('CUR in five rounds', 'tab:blue'),
  'seeded': ('the same, from the nearest in pixels', 'tab:purple'),
}


@dataclasses.dataclass
class Config(CheckedConfig):
  """What is searched and attended to.

  Args:
    dataset: a labelled set of images.
    keys: images of the train split to search in.
    queries: images of the validation split, from which anchors and queries are
      drawn.
    anchors: queries of the index.
    shift: largest shift of the scorer, in pixels.
    budgets: scorer calls a query, ascending.
    seeds: draws of anchors and queries.
    text: that the transformer is trained on.
    steps: of its training.
    tokens: of a sequence.
    landmarks: of the attention, ascending.
  """

  dataset: str = 'mnist'
  keys: int = 2000
  queries: int = 240
  anchors: int = 80
  shift: int = 3
  budgets: tuple[int, ...] = (24, 48, 96, 240)
  seeds: int = 2
  text: str = 'kjv'
  steps: int = 100
  tokens: int = 256
  landmarks: tuple[int, ...] = (8, 16, 32, 64, 128, 256)

  @classmethod
  def full(cls) -> 'Config':
    """More keys, queries, budgets and draws; a longer training."""
    return cls(
      keys=4500,
      queries=500,
      anchors=100,
      budgets=(16, 24, 32, 48, 64, 96, 128, 192, 384, 768),
      seeds=5,
      steps=300,
      landmarks=(4, 8, 16, 32, 48, 64, 96, 128, 192, 256),
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    images = load(self.dataset, data_dir=data_dir)
    train = isinstance(images.train, dict) and 'image' in images.train
    require(train, 'config.dataset', self.dataset, 'a set of labelled images')
    most = len(images.train['image'])
    require(TOP < self.keys <= most, 'config.keys', self.keys, f'11..{most}')
    most = len(images.validation['image'])
    good = 2 <= self.queries <= most
    require(good, 'config.queries', self.queries, f'2..{most}')
    good = 1 <= self.anchors < self.queries
    require(good, 'config.anchors', self.anchors, f'1..{self.queries - 1}')
    require(self.shift >= 0, 'config.shift', self.shift, '0 or more')
    for name, low, high in (
      ('budgets', TOP + 1, self.keys),
      ('landmarks', 1, self.tokens),
    ):
      values = getattr(self, name)
      good = bool(values) and all(low <= x <= high for x in values)
      good = good and list(values) == sorted(set(values))
      require(good, f'config.{name}', values, f'ascending, in {low}..{high}')
    for name in ('seeds', 'steps', 'tokens'):
      value = getattr(self, name)
      require(value >= 1, f'config.{name}', value, '1 or more')
    batch, devices = attention_error.BATCH, jax.device_count()
    require(batch % devices == 0, 'devices', devices, f'a divisor of {batch}')
    text = load(self.text, data_dir=data_dir)
    good = isinstance(text.train, np.ndarray) and text.train.ndim == 1
    require(good, 'config.text', self.text, 'a text')


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[dict]:
  """Searches and attends where rows are missing, and returns the rows."""
  c = config
  searches = c.seeds * len(METHODS) * len(c.budgets)
  with session(workdir, key, searches + c.steps) as launch:
    # Scored only if something of the search is not recorded yet.
    pairs = functools.cache(lambda: _scored(c, data_dir))
    # Queries less their mean: the last rank leaves nothing.
    count = min(c.queries, c.keys) - 1
    launch.record('spectrum', count, lambda: _spectra(c, *pairs()[:2]))
    for seed in range(c.seeds):
      rows = lambda seed=seed: _searches(c, launch, pairs(), seed)
      launch.record(f'search-{seed}', len(METHODS) * len(c.budgets), rows)
    count = len(attention_error.METHODS) * len(c.landmarks)
    rows = lambda: _attention(c, launch, parallel, data_dir)
    launch.record('attention', count, rows)
  return launch.records.rows


def _scored(c: Config, data_dir) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Scores of queries and keys, and cosines of pixels with keys and queries."""
  data = load(c.dataset, data_dir=data_dir)
  take = lambda split, n: jnp.asarray(split['image'][:n, ..., 0] / 255.0)
  keys, queries = take(data.train, c.keys), take(data.validation, c.queries)
  scores = jax.jit(best_match, static_argnums=2)(queries, keys, c.shift)
  flat = lambda x: (
    x.reshape(len(x), -1) / jnp.linalg.norm(x, axis=(1, 2))[:, None]
  )
  cosines = lambda a, b: flat(a) @ flat(b).T
  return scores, cosines(queries, keys), cosines(queries, queries)


def _spectra(c: Config, scores, pixels) -> Iterable[dict]:
  """What the best matrix of each rank leaves, queries less their mean."""
  tails = []
  for matrix in map(np.float64, (scores, pixels)):
    s = np.linalg.svd(matrix - matrix.mean(0), compute_uv=False)
    tails.append(np.sqrt(np.cumsum(s[::-1] ** 2)[:0:-1] / np.sum(s**2)))
  for rank, (scorer, cosine) in enumerate(zip(*tails, strict=True)):
    sizes = {'keys': c.keys, 'anchors': c.anchors}
    yield {'rank': rank, 'scorer': scorer, 'pixels': cosine, **sizes}


def _recall(found: np.ndarray, best: np.ndarray) -> float:
  """Mean share of the best keys of each query among those found."""
  hits = [len(np.intersect1d(a, b)) for a, b in zip(found, best, strict=True)]
  return float(np.mean(hits)) / best.shape[1]


def _searches(c: Config, launch: Session, pairs, seed: int) -> Iterable[dict]:
  """Recall of each method at each budget for one draw of anchors."""
  scores, pixels, among = pairs
  order = np.random.default_rng(seed).permutation(c.queries)
  anchors, queries = order[: c.anchors], jnp.asarray(order[c.anchors :])
  best = jax.lax.top_k(scores[queries], TOP)[1]
  cheap = {
    'pixels': pixels[queries],
    'regression': _regression(scores, among, anchors, queries),
  }
  for method, budget in itertools.product(METHODS, c.budgets):
    if method in cheap:
      found = jax.lax.top_k(cheap[method], budget)[1]
    else:
      found = _cur(c, method, budget, scores[anchors], scores[queries], cheap)
    launch.progress.advance(1, f'{method}, {budget} calls')
    recall = _recall(np.asarray(found), np.asarray(best))
    yield {'seed': seed, 'method': method, 'calls': budget, 'recall': recall}


def _look_up(rows: jax.Array, keys: jax.Array) -> jax.Array:
  """The score function: a query is its row of scores, a key a number."""
  return rows[:, keys]


def _regression(scores, among, anchors, queries) -> jax.Array:
  """Scores [Q, N] by kernel ridge regression from pixels, without a call."""
  known = scores[anchors]
  mean = jnp.mean(known, axis=0)
  gram = among[np.ix_(anchors, anchors)] + 0.1 * np.eye(len(anchors))
  weights = jnp.linalg.solve(gram, known - mean)
  return mean + among[queries][:, anchors] @ weights


def _cur(c: Config, method, budget, anchors, queries, cheap) -> jax.Array:
  """Keys found by `cur_search`, its calls split as the method says."""
  sizes = {'estimate': budget - TOP, 'one_round': budget // 2}
  size = sizes.get(method, min(budget // 4, c.anchors))
  keys, seeded = jnp.arange(c.keys), method == 'seeded'
  index = cur_index(
    _look_up,
    anchors,
    keys,
    landmarks=size,
    method='osinsky' if method == 'rounds' else 'uniform',
    key=jax.random.key(budget),
    batch_size=c.anchors,
  )
  found = cur_search(
    _look_up,
    index,
    queries,
    keys,
    top_k=TOP,
    rescore=budget - size,
    rounds=5 if method in ('rounds', 'seeded') else 1,
    start=jax.lax.top_k(cheap['pixels'], size)[1] if seeded else None,
    batch_size=len(queries),
  )
  return found.indices


def _attention(c: Config, launch, parallel, data_dir) -> Iterable[dict]:
  """Trains a transformer and approximates its heads."""
  text = load(c.text, data_dir=data_dir)
  size = dict(tokens=c.tokens, steps=c.steps)
  heads = attention_error.trained_heads(text, launch, parallel, **size)
  return attention_error.errors(*heads, c.landmarks)


def _numbers(rows: list[dict]) -> dict:
  """Calls to the target, recall at each budget, errors of attention."""
  runs = by_run(rows)
  for name in ('spectrum', 'attention'):
    require(name in runs, 'records', f'no {name}', 'its rows')
  recall = _recalls(rows)
  attention: dict = {}
  for row in runs['attention']:
    errors = attention.setdefault(row['method'], {})
    errors[row['landmarks']] = row['error']
  keys, anchors = (runs['spectrum'][0][name] for name in ('keys', 'anchors'))
  calls = {name: _calls(recall[name]) for name in METHODS}
  return {
    'calls_to_90_percent': calls,
    'keys': keys,
    'queries_that_repay_anchors': {
      'every key': _repay(keys * anchors, keys, calls['rounds']),
      'pixels': _repay(keys * anchors, calls['pixels'], calls['rounds']),
    },
    'share_of_full_scan': {name: x and x / keys for name, x in calls.items()},
    'recall': {
      name: {n: spread(x) for n, x in found.items()}
      for name, found in recall.items()
    },
    'attention_error': attention,
  }


def _recalls(rows: list[dict]) -> dict[str, dict[int, list[float]]]:
  """Recalls over seeds by method and calls."""
  found: dict = {name: {} for name in METHODS}
  for row in rows:
    if 'recall' in row:
      found[row['method']].setdefault(row['calls'], []).append(row['recall'])
  missing = [name for name in METHODS if len(found[name]) < 2]
  require(not missing, 'records', f'no {missing}', 'two budgets of each')
  return found


def _calls(recalls: dict[int, list[float]]) -> float | None:
  """Calls at which the mean recall reaches the target; `None`: it does not."""
  means = [float(np.mean(x)) for x in recalls.values()]
  if max(means) < TARGET:
    return None
  at = crossing(np.log([*recalls]), np.negative(means), -TARGET)
  return float(np.exp(at))


def _repay(cost: int, other: float | None, ours: float | None) -> float | None:
  """Queries after which calls spent once are saved; `None`: never.

  >>> _repay(1000, 110, 10)
  10.0
  """
  known = other is not None and ours is not None and ours < other
  return cost / (other - ours) if known else None


def plot(rows: list[dict], axes: dict) -> dict:
  """Draws the four panels from the rows and returns the headline numbers."""
  runs, numbers = by_run(rows), _numbers(rows)
  _plot_recall(numbers, axes['recall'])
  _plot_spectrum(runs['spectrum'], axes['spectrum'])
  attention_error.plot_errors(runs['attention'], axes['attention'])
  calls = numbers['calls_to_90_percent']
  say = lambda name: f'{calls[name]:.0f}' if calls[name] else 'not reached'
  axes['recall'].figure.suptitle(
    f'{TARGET:.0%} of the ten best of {numbers["keys"]} keys: CUR in rounds '
    f'{say("rounds")} calls a query, from the nearest in pixels '
    f'{say("seeded")}; pixels alone {say("pixels")}'
  )
  return numbers


def _plot_recall(numbers, ax):
  """Mean recall against calls, its range over draws as a band."""
  for name, (label, color) in METHODS.items():
    found = numbers['recall'][name]
    mean, low, high = (
      [x[k] for x in found.values()] for k in ('mean', 'min', 'max')
    )
    calls = numbers['calls_to_90_percent'][name]
    label += ': not reached' if calls is None else f': {calls:.0f}'
    ax.plot([*found], mean, '.-', color=color, label=label)
    ax.fill_between([*found], low, high, color=color, alpha=0.2, linewidth=0)
  keys = numbers['keys']
  ax.plot(keys, 1, 'k*', markersize=12, label=f'every key: {keys}')
  ax.plot([], [], ' ', label=f'random keys: {TARGET * keys:.0f}')
  ax.axhline(TARGET, color='black', linewidth=0.8)
  ax.set(
    xscale='log',
    xlabel='scorer calls a query',
    ylabel=f'recall of the {TOP} best keys',
    ylim=(0, 1.03),
    title='retrieval: best match over shifts and turns; bands over draws',
  )
  title = f'calls to {TARGET:.0%} (those of the anchors, once, left out)'
  ax.legend(title=title, loc='lower right')


def _plot_spectrum(rows, ax):
  """What low rank leaves of the scores, and of their cheap likeness."""
  ranks = [row['rank'] for row in rows]
  label = 'scores, queries less their mean'
  ax.plot(ranks, [row['scorer'] for row in rows], label=label)
  ax.plot(
    ranks,
    [row['pixels'] for row in rows],
    '--',
    color='tab:gray',
    label='cosines of pixels',
  )
  ax.set(
    yscale='log',
    xlabel='rank',
    ylabel='relative error of the best approximation',
    title='how low the rank of the score matrix is',
  )
  ax.legend()
