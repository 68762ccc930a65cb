"""Panels draw every contestant in its color, the numbers where they belong."""

import matplotlib.colors
import matplotlib.figure
import pytest

from kexue.figures import lora_panels
from kexue.figures.comparison import by_run
from kexue.figures.lora_contest import (
  CONTESTANTS,
  SETTINGS,
  STARTS,
  headline,
  names_in,
)


def rows():
  made = []
  for setting in SETTINGS:
    for i, name in enumerate(names_in(setting)):
      for rate, seed in ((0.1, 0), (0.2, 0), (0.4, 0), (0.2, 1)):
        for step in range(1, 11):
          fall = (1 + i / 10) * step / 10
          about = {'setting': setting, 'contestant': name, 'step': step}
          made.append(
            about
            | {
              'run': f'{setting}{name}{rate}{seed}',
              'learning_rate': rate,
              'seed': seed,
              'score': 2 - fall + (rate != 0.2),
              'cosine': i / 10,
            }
          )
  sizes = ('missed', 'missed_at_best_rate', 'missed_of_fresh', 'theory')
  for name in STARTS:
    for rank in (1, 2, 4):
      about = {'run': 'first', 'start': name, 'rank': rank}
      made.append(about | dict.fromkeys(sizes, 1 / rank))
  return made


@pytest.fixture
def ax():
  return matplotlib.figure.Figure().subplots()


ROWS = rows()
RUNS = by_run(ROWS)


def labels(ax):
  return {text.get_text() for text in ax.get_legend().get_texts()}


@pytest.mark.parametrize('setting', SETTINGS)
def test_curves_and_rates(setting, ax):
  lora_panels.curves(ax, RUNS, headline(ROWS), setting)
  lines = {line.get_label().split(':')[0]: line for line in ax.get_lines()}
  for name in names_in(setting):
    color = matplotlib.colors.same_color(
      lines[name].get_color(), CONTESTANTS[name].color
    )
    assert color and len(lines[name].get_xdata()) == 10
  assert any(line.get_linestyle() == ':' for line in ax.get_lines())
  assert SETTINGS[setting].title in ax.get_title() and ax.get_ylabel()
  other = matplotlib.figure.Figure().subplots()
  lora_panels.rates(other, RUNS, setting)
  assert labels(other) == set(names_in(setting))
  assert [t.get_text() for t in other.get_xticklabels()] == [
    '0.1',
    '0.2',
    '0.4',
  ]


def test_first_steps_and_cosines(ax):
  lora_panels.first_steps(ax, RUNS['first'])
  assert set(STARTS) <= labels(ax) and any('theory' in x for x in labels(ax))
  other = matplotlib.figure.Figure().subplots()
  lora_panels.cosines(other, RUNS)
  assert labels(other) == set(names_in('sgd'))


def test_bars_of_steps(ax):
  numbers = headline(ROWS)
  lora_panels.steps(ax, numbers)
  shown = {t.get_text() for t in ax.texts}
  mean = numbers['by_setting']['sgd']['LoRA-GA']['steps_ratio']['mean']
  assert f'{mean:.2f}' in shown
  heights = [
    bar.get_height()
    for box in ax.containers
    for bar in getattr(box, 'patches', [])
  ]
  assert len(heights) == sum(len(names_in(s)) - 1 for s in SETTINGS)
