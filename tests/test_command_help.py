"""`--help`, near flags, and what shells complete by."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver
from conftest import HANG_S, ROOT

from medseg_jax import command_help, command_line, completion
from medseg_jax.experiment import config_files, overrides
from medseg_jax.runtime.errors import InputError


def told(capsys, *args):
  """Returns what the arguments have the program tell in place of a run."""
  with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
    command_line.parse(['medseg-jax', *args])
  assert not ended.value.code
  return capsys.readouterr().out


def test_every_mode_and_every_flag_is_told(capsys):
  modes = command_help.values_of(flags.FLAGS['mode'])
  assert set(command_help.MODES) == set(modes)
  own = flags.FLAGS.flags_by_module_dict()[command_line.__name__]
  assert {flag.name for flag in own} | {'config'} == set(command_help.names())
  text = told(capsys, '--help')
  assert max(map(len, text.splitlines())) <= 80
  for name in (*modes, *(f'--{name}' for name in command_help.names())):
    assert len(re.findall(rf'(?m)^  {name}(?![\w-])', text)) == 1, name
  one = told(capsys, '--mode=export', '--help')
  assert '--format=model|stablehlo|onnx\n' in one and '--runs' not in one


@pytest.mark.parametrize('mode', command_help.MODES)
def test_the_examples_are_commands_of_their_mode(mode, monkeypatch):
  monkeypatch.chdir(ROOT)
  words = shlex.split(command_help.MODES[mode].example)
  with flagsaver.flagsaver():
    command_line.parse(['medseg-jax', *words])
    assert command_line.MODE.value == mode
    command_line.workdir()  # it has what names one
  given = {re.match(r'--(\w+)', word)[1] for word in words} - {'mode'}
  assert given <= {*command_help.MODES[mode].takes, 'config'}


@pytest.mark.parametrize(
  ('args', 'line'),
  [
    (['--modee=plan'], 'unknown flag --modee; did you mean --mode?'),
    (
      ['--learning_rate=1'],
      'unknown flag --learning_rate; did you mean '
      '--config.fine_tune.learning_rate or --config.optimizer.learning_rate?',
    ),
    (['--zzz'], 'unknown flag --zzz; --help lists all'),
    (
      ['--checkpoint=last'],
      '--checkpoint=last: allowed are best, latest; did you mean latest?',
    ),
  ],
)
def test_what_is_nearly_right_is_told(args, line, monkeypatch):
  monkeypatch.chdir(ROOT)
  with flagsaver.flagsaver(), pytest.raises(InputError) as error:
    command_line.parse(['medseg-jax', '--config=configs/unet.py', *args])
  assert str(error.value) == line


# Words before the cursor, and what may stand there.
COMPLETED = [
  ('--mod', {'--mode=', '--model='}),
  ('--workdir=x --split=v', {'val'}),
  ('--mode=eval', {'evaluate'}),
  ('--overw', {'--overwrite'}),
  ('--config.data.num_f', {'--config.data.num_folds='}),
  ('--config=configs/tut', {'configs/tutorial.py'}),
  ('--model=configs/em', {'configs/em.py'}),
  ('--series=x', set()),
]


@pytest.mark.parametrize(('typed', 'wanted'), COMPLETED)
def test_bash_completes(typed, wanted, tmp_path):
  known = [flags.FLAGS[name] for name in command_help.names()]
  keys = overrides.keys_of(config_files.default_config())
  (tmp_path / 'script').write_text(completion.script('bash', known, keys))
  line = f'medseg-jax {typed}'
  # compopt is only for a completion that goes on.
  ask = (
    f'source {tmp_path}/script; compopt() {{ :; }}; '
    f'COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}; '
    '_medseg_jax; printf \'%s\\n\' "${COMPREPLY[@]}"'
  )
  done = subprocess.run(
    ['bash', '-c', ask],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert done.stderr == ''
  assert set(done.stdout.split()) == wanted


@pytest.mark.skipif(not shutil.which('zsh'), reason='no zsh')
@pytest.mark.parametrize(('typed', 'wanted'), COMPLETED)
def test_zsh_completes(typed, wanted, tmp_path):
  known = [flags.FLAGS[name] for name in command_help.names()]
  keys = overrides.keys_of(config_files.default_config())
  script = completion.script('zsh', known, keys)
  # What the completion of zsh has for a script, in as far as it is asked.
  head = """
compdef() { :; }
compset() { PREFIX=${PREFIX#*=} }
compadd() {
  while [[ $1 != -- ]]; do shift; done; shift
  local word; for word; do [[ $word == $PREFIX* ]] && print -r -- $word; done
  true
}
_files() { print -rl -- $PREFIX*(N) }
"""
  (tmp_path / 'script').write_text(head + script)
  word = typed.split()[-1]
  done = subprocess.run(
    ['zsh', '-fc', f'source {tmp_path}/script; PREFIX="$1"; _medseg_jax']
    + ['zsh', word],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert done.stderr == ''
  assert set(done.stdout.split()) == wanted


def test_the_script_is_printed_without_jax():
  code = (
    'import sys\nfrom medseg_jax import command_line\n'
    "try:\n  command_line.parse(['x', '--completion=bash'])\n"
    "finally:\n  assert 'jax' not in sys.modules, 'heavy'\n"
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout.endswith('complete -F _medseg_jax medseg-jax\n')
