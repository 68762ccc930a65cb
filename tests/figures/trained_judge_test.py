"""The judge is trained once, and compares with the images that it says."""

import jax
import pytest

from kexue.figures.session import session
from kexue.figures.trained_judge import SETTINGS, trained_judge
from kexue.training.data import load


def test_a_judge_is_trained_once(tmp_path, monkeypatch):
  monkeypatch.setitem(SETTINGS, 'steps', 4)
  data, scores = load('digits'), []
  images, labels = (data.validation[k][:20] for k in ('image', 'label'))
  for _ in range(2):
    with session(tmp_path, jax.random.key(0), 4) as launch:
      judge = trained_judge(launch, data, 20, parallel='jit')
      scores.append(judge.score(images, labels))
      assert [row['run'] for row in launch.records.rows] == ['classifier']
  assert scores[0] == scores[1]
  assert scores[0]['frechet'] == pytest.approx(0, abs=1e-6)
  assert judge.score(255 - images, labels)['frechet'] > 0.01
  assert (tmp_path / 'checkpoints' / 'classifier').exists()
