"""The judge of figures about samples: a classifier, trained once in a run."""

from ..training.data import Dataset
from .image_features import ClassifierTask, Judge
from .session import Session
from .tokenizer import Tokenizer

LABEL = 'classifier'
SETTINGS = {'steps': 400, 'batch_size': 64, 'learning_rate': 0.002}


def trained_judge(
  launch: Session, data: Dataset, count: int, *, parallel: str = 'pmap'
) -> Judge:
  """Trains the classifier, or takes the one that is in the workdir.

  Args:
    launch: the launch; training takes `SETTINGS['steps']` of its progress.
    data: labelled images; the classifier learns from those for training.
    count: how many of the held-out images, the first, others are compared with.
    parallel: see `parallelize`.

  Returns:
    What scores sets of `count` images.
  """
  settings = dict(SETTINGS)
  rate, steps = settings.pop('learning_rate'), settings.pop('steps')
  task = ClassifierTask(data, **settings)
  runs = Tokenizer(task, steps=steps, log_every=steps, parallel=parallel)
  state = runs.train(launch, LABEL, {}, seed=0, keep=True, learning_rate=rate)
  return Judge(task, state, data.validation['image'][:count])
