"""Calls timed against each other, round by round, on one pinned core."""

import argparse
import os
import time

import numpy as np


def pinned_arguments(rounds):
  """`--rounds` and `--core`; pins the process before jax counts its threads."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--rounds', type=int, default=rounds)
  parser.add_argument('--core', type=int, default=0)
  args = parser.parse_args()
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {args.core})
  return args


def timed(call):
  start = time.perf_counter()
  result = call()
  return time.perf_counter() - start, result


def measure(calls, rounds):
  """Results, seconds of the first call, and seconds by round, by name."""
  first, results, times = {}, {}, {name: [] for name in calls}
  for name, call in calls.items():
    first[name], results[name] = timed(call)
    call()
  for _ in range(rounds):
    for name, call in calls.items():
      times[name].append(timed(call)[0])
  return results, first, times


def report(title, first, times, size=None):
  """A table; ratios against the first row, of the minima and of the rounds.

  MB: temporary memory of the program.
  """
  last = ' MB |' if size else ''
  print(
    f'\n| {title} | min ms | median ms | min ratio | median | first s |{last}'
  )
  print('|---|---|---|---|---|---|' + ('---|' if size else ''))
  base = np.array(next(iter(times.values())))
  for name, t in times.items():
    # Of the same round, so that what slows a machine down slows both.
    ratio = np.median(np.array(t) / base)
    known = f'{size[name] / 2**20:.0f}' if size and name in size else ''
    last = f' {known} |' if size else ''
    print(
      f'| {name} | {1e3 * min(t):.2f} | {1e3 * np.median(t):.2f} | '
      f'{min(t) / min(base):.2f} | {ratio:.2f} | {first[name]:.2f} |{last}'
    )
