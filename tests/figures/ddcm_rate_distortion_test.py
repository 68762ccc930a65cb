"""A run in small that is recorded once, and configurations that are refused."""

import dataclasses
import math

import jax
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import ddcm_rate_distortion
from kexue.figures.codec_contest import Contest, psnr
from kexue.figures.ddcm_rate_distortion import (
  MOSAIC,
  Config,
  plot,
  run,
)
from kexue.figures.image_features import frechet
from kexue.figures.rotation_panels import image_of
from kexue.training.loop import Interrupted

KEY = jax.random.key(0)
SMALL = Config(
  dataset='digits',
  coded=20,
  batch=16,
  pursuits=((8, 2, 2, 3, 0.3),),
  turbos=(),
  tail=1,
  kinds=(),
  kind_turbos=(),
  steps_of_transforms=(200.0,),
  qualities=(50,),
  known=100,
  bed_pursuits=(),
  bed_turbos=((2, 2, 0.5),),
  bed_tail=1,
  bed_images=4,
)


@pytest.fixture
def config(random_run, quick_judge, quick_network):
  quick_judge(ddcm_rate_distortion)
  return dataclasses.replace(SMALL, model=random_run)


def test_a_run_that_was_stopped_is_recorded_once(config, tmp_path, monkeypatch):
  config.check()
  rebuilt, entered = Contest.rebuilt, []
  with monkeypatch.context() as stopping:
    noted = lambda self, *x: entered.append(x) or rebuilt(self, *x)
    stopping.setattr(Contest, 'rebuilt', noted)
    agreed = 'kexue.training.loop.StopSignal.agreed'
    stopping.setattr(agreed, lambda self: bool(entered))
    with pytest.raises(Interrupted, match='even-hadamard: stopped'):
      run(config, KEY, tmp_path / 'run', parallel='jit')
  assert len(entered) == 1
  rows = run(config, KEY, tmp_path / 'run', parallel='jit')
  found = {row['run']: row for row in rows}
  even, equal = (f'ddcm-K8-M2-C2-T3-{x}-hadamard' for x in ('even', 'equal_kl'))
  bed = [f'bed-turbo-K1024-M2-C1-T2-{x}-hadamard' for x in ('even', 'equal_kl')]
  of_transforms = ['pca-200', 'dct-200', 'jpeg-50']
  assert any('pixels' in found[name] for name in (even, equal))
  assert [*found] == ['real', *of_transforms, even, equal, *bed]
  originals = config.data().validation['image'][20:40]
  real = config.data().validation['image'][:20]
  distance = frechet(*(x.mean(axis=(1, 3)) for x in (real, originals)))
  variance = np.sum(np.var(real.mean(axis=(1, 3)), axis=0))
  assert found['real']['real_frechet'] == pytest.approx(distance / variance)
  np.testing.assert_array_equal(
    image_of(found['real'])[:, :8], originals[0, ..., 0]
  )
  for name in (*of_transforms, even, equal):
    row = found[name]
    each = np.array(row['psnrs'].split(), float)
    assert len(each) == 20 and each.mean() == pytest.approx(
      row['psnr'], abs=1e-3
    )
    assert row['frechet'] > 0 and row['frechet_error'] > 0
    # The pictures are those of which the numbers are, at rates as shown.
    assert ('pixels' in row) == (0.3 < row['bits_per_pixel'] < 1.2)
    if 'pixels' in row:
      own = image_of(row)[:, :8][None, ..., None]
      assert psnr(own, originals[:1])[0] == pytest.approx(each[0], abs=1e-3)
  # Three steps: one of 8 atoms, and none or one of 8 more with 3 weights.
  bits = math.ceil(3 * math.log2(8 * (1 + 8 * 3)))
  for name in (even, equal):
    assert found[name]['bits_per_pixel'] == bits / 64
  assert found['jpeg-50']['file_rate'] > found['jpeg-50']['bits_per_pixel'] + 35
  assert found[bed[0]]['distortion'] > 0
  monkeypatch.setattr(Contest, 'encode', None)
  assert run(config, KEY, tmp_path / 'run', parallel='jit') == rows
  axes = matplotlib.figure.Figure().subplot_mosaic(MOSAIC)
  numbers = plot(rows, axes)
  for name in (*of_transforms, even, equal):
    each = 10 ** (-np.array(found[name]['psnrs'].split(), float) / 10)
    whole = numbers['table'][name]['psnr_of_mean_error']
    assert whole == pytest.approx(-10 * math.log10(each.mean()))
  assert numbers['images'] == 20 and numbers['dataset'] == 'digits'
  assert len(numbers['gains']) == 1 and numbers['kinds'] == []
  assert 'equal KL over even steps' in axes['psnr'].figure.get_suptitle()


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(coded=1), 'config.coded: got 1'),
    (dict(coded=10_000), 'at most half of the .* held-out'),
    (dict(batch=0), 'config.batch'),
    (dict(tail=-1), 'config.tail'),
    (dict(steps_of_transforms=(0.0,)), 'config.steps_of_transforms'),
    (dict(qualities=(99,)), 'config.qualities: .* 1 to 95'),
    (dict(kinds=('gaussian',)), 'config.kinds: .* rademacher'),
    (dict(turbos=((2, 3, 0.1), (2, 3, 0.2))), 'one part of nats for each'),
    (dict(pursuits=()), 'config.pursuits: .* a turbo'),
    (dict(pursuits=((0, 1, 1, 3, 0.3),)), 'size: got 0'),
    (dict(pursuits=((8, 1, 1, 25, 0.01),)), 'steps|count'),
    (dict(pursuits=((8, 1, 1, 3, 100.0),)), 'count: .* the KL is'),
    (dict(turbos=((65, 3, 0.1),)), 'atoms: got 65, .* 64'),
    (dict(bed_turbos=((0, 3, 0.1),)), 'atoms: got 0'),
    (dict(model='nowhere'), 'model: got'),
    (dict(dataset='photos'), 'config.dataset'),
  ],
)
def test_what_cannot_run_is_refused(config, change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(config, **change).check()
