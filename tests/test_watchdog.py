"""A process that makes no progress is found, and one that compiles is not."""

import threading
import time

import jax
import jax.numpy as jnp
import many
import pytest

from medseg_jax.runtime import stop_signal, watchdog

# Process 1, the less patient, hangs; the other one waits for it.
HANGS = """
import os, threading
from medseg_jax.runtime import multihost
def hang_here():
  threading.Event().wait()
if os.environ['JAX_PROCESS_ID'] == '1':
  multihost.PATIENCE_SECONDS = 5.0
multihost.start()
if multihost.is_primary():
  multihost.barrier()
hang_here()
"""


def test_one_that_hangs_says_where_and_all_leave_to_be_started_again(tmp_path):
  started = many.start(tmp_path / 'run', processes=2, before=HANGS)
  assert many.wait(started) == [75, 75]
  waits, hangs = many.printed(tmp_path / 'run', 2)
  assert 'error: process 1 of 2 has made no progress for 5 s' in hangs
  assert 'in hang_here' in hangs
  assert 'process 0 of 2 is here' in waits and 'in barrier' in waits


def test_only_looks_without_any_check_between_them_count(monkeypatch):
  looks = []

  def sleep(seconds):
    looks.append(seconds)
    if len(looks) <= 50 and len(looks) % 10 == 0:
      stop_signal.check()

  monkeypatch.setattr(watchdog.time, 'sleep', sleep)
  watchdog.watch(60.0, lambda: looks.append(None)).join()
  # The 50th was the last with progress; then a minute without.
  assert looks.pop() is None and sum(looks[50:]) == pytest.approx(60.0)


def test_compiling_is_progress():
  found = threading.Event()
  assert not watchdog._compiles()

  def look():
    while not watchdog._compiles():
      time.sleep(0.001)
    found.set()

  thread = threading.Thread(target=look, daemon=True)
  thread.start()
  size = 1
  while not found.is_set():
    jax.jit(jnp.linalg.svd)(jnp.eye(size))
    size += 1
  thread.join()
