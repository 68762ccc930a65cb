"""A run in small that is recorded once, and sets that are what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from kexue.diffusion import Codebook, ddcm_sample
from kexue.figures import ddcm_codebook_size
from kexue.figures.ddcm_codebook_size import MOSAIC, Config, decode, plot, run
from kexue.figures.rotation_panels import image_of
from kexue.training.loop import Interrupted

KEY = jax.random.key(0)
SMALL = Config(
  dataset='digits',
  sizes=(1, 3),
  shared_sizes=(2,),
  sampling_steps=3,
  judged=40,
  batch=20,
  resamples=4,
  bed_sizes=(8, 16),
  bed_seeds=2,
)


@pytest.fixture
def config(random_run, quick_judge, quick_network):
  quick_judge(ddcm_codebook_size)
  return dataclasses.replace(SMALL, model=random_run)


def test_a_run_is_recorded_once(config, tmp_path, monkeypatch):
  config.check()
  with monkeypatch.context() as patched:
    record = ddcm_codebook_size.Contest.record

    def and_stop(self, name, **tags):
      record(self, name, **tags)
      self.launch.stop.requested = name == 'independent-1'

    patched.setattr(ddcm_codebook_size.Contest, 'record', and_stop)
    with pytest.raises(Interrupted, match='stopped before independent-3'):
      run(config, KEY, tmp_path, parallel='jit')
  rows = run(config, KEY, tmp_path, parallel='jit')
  sets = {row['run']: row for row in rows if 'pixels' in row}
  names = ['ddpm-1', 'ddpm-2', 'independent-1', 'independent-3', 'shared-2']
  assert [*sets] == ['real', *names]
  for name, row in sets.items():
    # The distance to real images is that of the judge.
    assert row['reference_distance'] == pytest.approx(row['frechet'])
    assert row['reference_low'] <= row['reference_high']
    assert 0.2 <= row['reference_chance'] <= 1
    floor = sets['ddpm-2']['reference_distance']
    more = row['reference_distance'] - floor
    assert row['reference_value'] == pytest.approx(more, abs=1e-9)
    assert ('ddpm-1_value' in row) == (name != 'ddpm-1')
  same = sets['ddpm-2']
  assert (same['ddpm-1_value'], same['ddpm-1_chance']) == (0, 1)
  assert sets['independent-3']['bits'] == pytest.approx(3 * np.log2(3))
  assert sets['independent-1']['bits'] == 0 and sets['shared-2']['shared'] == 1
  # One atom: all images of a class are one image; not so with three.
  for name, same in (('independent-1', True), ('independent-3', False)):
    first, second = np.split(image_of(sets[name])[:, :16], 2, axis=1)
    assert np.array_equal(first, second) == same
  assert len([row for row in rows if row['run'] == 'bed-shared']) == 4
  # Nothing is drawn again.
  monkeypatch.setattr(ddcm_codebook_size, 'draw', None)
  monkeypatch.setattr(ddcm_codebook_size, 'decode', None)
  monkeypatch.setattr(ddcm_codebook_size, 'excess', None)
  assert run(config, KEY, tmp_path, parallel='jit') == rows
  axes = matplotlib.figure.Figure().subplot_mosaic(MOSAIC)
  numbers = plot(rows, axes)
  assert set(numbers['table']) == {'real', *names}
  title = axes['images'].figure.get_suptitle()
  assert '40 images of 3 steps, digits' in title and 'Gaussian' in title


def test_images_are_those_of_the_library(random_model):
  """Of the first atoms of a larger codebook, which one program serves."""
  schedule, label = random_model.schedule.respace(3), jnp.arange(4)
  expected = ddcm_sample(
    random_model.denoise(label),
    schedule,
    Codebook(3, 64),
    KEY,
    count=4,
    shape=(8, 8, 1),
  )
  drawn = jnp.append(
    expected.start[:, None], expected.codes.indices[..., 0], axis=1
  )
  found = decode(random_model, schedule, Codebook(8, 64), label, drawn)
  np.testing.assert_allclose(found, expected.x0, atol=1e-5)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(sizes=(2, 1)), 'config.sizes: .* ascending'),
    (dict(sizes=(0, 1)), 'config.sizes'),
    (dict(shared_sizes=()), 'config.shared_sizes'),
    (dict(bed_sizes=(2, 2)), 'config.bed_sizes'),
    (dict(bed_seeds=0), 'config.bed_seeds'),
    (dict(resamples=1), 'config.resamples'),
    (dict(batch=0), 'config.batch'),
    (dict(batch=30), 'config.judged: got 40, expected 30 at a time'),
    (dict(judged=1000), 'at most half of the .* held-out'),
    (dict(sampling_steps=1), 'config.sampling_steps'),
    (dict(sampling_steps=21), 'config.sampling_steps: .* 2 to 20 timesteps'),
    (dict(dataset='photos'), 'config.dataset'),
  ],
)
def test_what_cannot_run_is_refused(config, change, message):
  config.check()
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(config, **change).check()
