"""A bar on a terminal, sparse lines elsewhere."""

import io

from kexue.training.progress import Progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_log_gets_its_first_and_last_line_and_few_between():
  stream = io.StringIO()
  progress = Progress(100, stream=stream, interval=1e9)
  for _ in range(10):
    progress.advance(10, 'adamw', loss=1.25)
  lines = stream.getvalue().splitlines()
  assert [line.split('/')[0] for line in lines] == ['10', '100']
  assert 'adamw | loss 1.250 |' in lines[0] and lines[1].endswith('0:00 left')


def test_steps_of_an_earlier_launch_do_not_count_for_the_rate():
  stream = io.StringIO()
  progress = Progress(100, stream=stream)
  progress.skip(99)
  progress._started -= 10.0  # As if the one step had taken ten seconds.
  progress.advance(1, 'x', loss=0.0)
  assert '| 0.1 steps/s |' in stream.getvalue()


def test_a_terminal_gets_a_bar_with_loss_and_time_left():
  stream = Terminal()
  progress = Progress(10, stream=stream)
  progress.skip(2)
  progress.advance(8, 'muon', loss=0.5)
  progress.note('diverged')
  progress.close()
  shown = stream.getvalue()
  assert 'muon' in shown and '10/10' in shown and 'loss=0.500' in shown
  assert 'diverged' in shown


def test_other_processes_are_silent():
  stream = io.StringIO()
  progress = Progress(1, show=False, stream=stream)
  progress.advance(1, 'x', loss=0.0)
  progress.note('x')
  progress.close()
  assert stream.getvalue() == ''


def test_steps_can_turn_out_to_be_more():
  for stream, shown in (
    (io.StringIO(), '10/30 steps'),
    (Terminal(), '10/30'),
  ):
    progress = Progress(10, stream=stream)
    progress.expect(20)
    progress.advance(10, 'x', loss=0.0)
    progress.close()
    assert shown in stream.getvalue()
