"""A run in small that is recorded once, and codes that are what they say."""

import dataclasses

import jax
import matplotlib.figure
import numpy as np
import pytest

from kexue.diffusion import equal_kl_timesteps, ideal_bits
from kexue.figures import ddcm_progressive
from kexue.figures.codec_contest import Contest, psnr
from kexue.figures.ddcm_progressive import MOSAIC, SHOWN, Config, plot, run
from kexue.figures.progressive_panels import RULES, numbers_of
from kexue.figures.rotation_panels import image_of
from kexue.training.loop import Interrupted

KEY = jax.random.key(0)
SMALL = Config(
  dataset='digits', size=64, atoms=2, codes=4, tail=2, prefixes=(2,), encoded=6
)


@pytest.fixture
def config(random_run, quick_network):
  return dataclasses.replace(SMALL, model=random_run)


def test_a_run_is_recorded_once(config, random_model, tmp_path, monkeypatch):
  config.check()
  with monkeypatch.context() as patched:
    record = ddcm_progressive.Progressive.record

    def and_stop(self):
      self.launch.stop.requested = True
      record(self)

    patched.setattr(ddcm_progressive.Progressive, 'record', and_stop)
    with pytest.raises(Interrupted, match='stopped before even-2'):
      run(config, KEY, tmp_path, parallel='jit')
  rows = run(config, KEY, tmp_path, parallel='jit')
  runs = list(dict.fromkeys(row['run'] for row in rows))
  assert runs == ['originals', 'even', 'even-2', 'equal_kl', 'equal_kl-2']
  images = config.data().validation['image'][-6:]
  assert np.array_equal(image_of(rows[0])[:, :8], images[0, ..., 0])
  assert rows[0]['columns'] == SHOWN * 8
  of = lambda rule, kind: [
    row for row in rows if (row.get('rule'), row.get('kind')) == (rule, kind)
  ]
  for rule in RULES:
    header = config.header((8, 8, 1), rule)
    expected = of(rule, 'expected')
    assert [row['codes'] for row in expected] == [*range(5)]
    bits = [row['bits_per_pixel'] for row in expected]
    np.testing.assert_allclose(bits, np.arange(5) * ideal_bits(header) / 256)
    (finished,), (alone,) = of(rule, 'finished'), of(rule, 'alone')
    assert finished['codes'] == alone['codes'] == 2
    assert numbers_of(alone['psnrs']).mean() == pytest.approx(
      alone['psnr'], abs=1e-4
    )
  timesteps = [row['timestep'] for row in of('equal_kl', 'expected')]
  nats = config.told * ideal_bits(header) / 4 * np.log(2)
  chosen = equal_kl_timesteps(
    random_model.schedule,
    random_model.kl_per_step,
    5,
    nats=int(1000 * nats) / 1000,
    tail=2,
  )
  assert timesteps == [*chosen[:1:-1]]
  # The last one of even timesteps is what a decoder makes of all codes.
  contest = Contest.of(random_model, batch=6)
  whole = psnr(
    contest.rebuilt(config.header((8, 8, 1), 'even'), images), images
  )
  assert of('even', 'expected')[-1]['psnr'] == pytest.approx(
    whole.mean(), abs=0.02
  )
  # Nothing is encoded again.
  monkeypatch.setattr(Contest, 'encode', None)
  monkeypatch.setattr(ddcm_progressive.Progressive, '_of_prefixes', None)
  assert run(config, KEY, tmp_path, parallel='jit') == rows
  axes = matplotlib.figure.Figure().subplot_mosaic(MOSAIC)
  numbers = plot(rows, axes)
  assert [*numbers['rules']] == [*RULES]
  title = axes['images'].figure.get_suptitle()
  assert '6 held-out images, digits' in title


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(mode='png'), 'mode'),
    (dict(size=0), 'size: got 0'),
    (dict(atoms=65), 'atoms: got 65'),
    (dict(codes=0, prefixes=()), 'config.prefixes'),
    (dict(prefixes=(2, 1)), 'config.prefixes: .* ascending'),
    (dict(prefixes=(5,)), '1 to the 4 codes'),
    (dict(told=0.0), 'config.told'),
    (dict(tail=-1), 'config.tail'),
    (dict(codes=18, tail=2), 'config.codes: got 18, expected at most 17'),
    (dict(encoded=3), 'config.encoded: got 3'),
    (dict(dataset='photos'), 'config.dataset'),
  ],
)
def test_what_cannot_run_is_refused(config, change, message):
  config.check()
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(config, **change).check()
