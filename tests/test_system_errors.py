"""What the system refuses, and files that hold anything: one line each."""

import errno
import io
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import HANG_S, ROOT, write_volumes
from data_cases import assert_all_in, assert_one_line

from medseg_jax import main
from medseg_jax.data import splits
from medseg_jax.data.sources.dataset_json import read_dataset_json
from medseg_jax.experiment import config_files, held_out, model_folder
from medseg_jax.programs import export
from medseg_jax.report import panels
from medseg_jax.runtime import errors
from medseg_jax.runtime.errors import FileError, InputError
from medseg_jax.runtime.metric_writer import MetricWriter

UNET = '--config=configs/unet.py'
NOT_JSON = {
  'nested': b'[' * 1_000_000,
  'nested objects': b'{"a":' * 1_000_000 + b'1' + b'}' * 1_000_000,
  'zeros': b'\0' * 1000,
  'no text': b'\xff\xfe' * 1000,
  'too large': b'{"data": 1' + b'0' * 5000 + b'}',
  'not finite': b'{"data": {"fold": Infinity}, "model": {}}',
  'empty': b'',
}
OTHER_JSON = {
  'list': b'[]',
  'null': b'null',
  'number': b'3',
  'text': b'"' + b'x' * 10_000 + b'"',
  'nothing': b'{}',
  'sections': b'{"data": [], "model": null, "labels": 7, "format": 1}',
  'keys': b'{"data": {"": 1, "a.b": 2}, "model": {"name.x": 3}}',
}
EVERYTHING = NOT_JSON | OTHER_JSON


@pytest.fixture
def complaint(refused):
  """Returns a function from arguments to all that stderr gets, one line."""

  def call(*args):
    text = refused(*args)
    assert text.startswith('error: ') and text.count('\n') == 1, text
    return text

  return call


def spoil(path, content):
  """Puts `content` into the place of a file; a folder where it is None."""
  if path.is_dir():
    shutil.rmtree(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.unlink(missing_ok=True)
  path.mkdir() if content is None else path.write_bytes(content)


@pytest.mark.parametrize('read', [
  lambda path: config_files.read_config(path.parent),
  read_dataset_json,
  splits.read_splits,
  lambda path: model_folder.read_description(path.parent),
  lambda path: held_out.read(path.parent),
])  # fmt: skip
def test_files_that_hold_anything(tmp_path, read, request):
  names = ('config', 'dataset', 'splits', 'model', 'held_out')
  name = names[request.node.callspec.indices['read']]
  path = tmp_path / f'{name}.json'
  for kind, content in {**EVERYTHING, 'folder': None}.items():
    spoil(path, content)
    with pytest.raises(InputError) as error:
      read(path)
    assert_one_line(error, str(tmp_path))
    assert len(str(error.value)) < 500 + len(str(path)), kind


def spoilt_zips():
  """Returns {kind: bytes} of zips that Python's module cannot read."""
  plain = io.BytesIO()
  with zipfile.ZipFile(plain, 'w', zipfile.ZIP_DEFLATED) as file:
    file.writestr('model/model.json', '{"format": "medseg_jax model"}' * 9)
  plain = plain.getvalue()
  first, second = plain.index(b'PK\3\4'), plain.index(b'PK\1\2')

  def changed(offset, value):
    content = bytearray(plain)
    content[first + offset] = content[second + offset + 2] = value
    return bytes(content)

  garbled = bytearray(plain)
  garbled[46:52] = b'\xff' * 6
  return {
    'encrypted': changed(6, 1),
    'packed in another way': changed(8, 99),
    'garbled': bytes(garbled),
    'cut off': plain[:-30],
    'without an end': plain[:60],
  }


def test_a_zip_of_anything_is_no_model(tmp_path):
  path = tmp_path / 'model.zip'
  for kind, content in {**EVERYTHING, **spoilt_zips(), 'folder': None}.items():
    spoil(path, content)
    with pytest.raises(InputError) as error:
      model_folder.read(path)
    assert_one_line(error, str(path), 'allowed is a model folder')
    assert len(str(error.value)) < 400, kind


@pytest.mark.parametrize('name', ['config.json', 'model/model.json'])
def test_the_command_on_a_workdir_of_anything(tmp_path, complaint, name):
  for kind in ('nested', 'zeros', 'too large', 'list', 'nothing'):
    spoil(tmp_path / name, EVERYTHING[kind])
    line = complaint('--mode=evaluate', f'--workdir={tmp_path}')
    assert str(tmp_path) in line and len(line) < 500, kind


def test_the_command_on_a_plan_of_anything(tmp_path, complaint):
  root = write_volumes(tmp_path / 'Balls', 3)
  plan = tmp_path / 'run' / 'plan.json'
  for kind in ('nested', 'zeros', 'not finite', 'list', 'nothing', 'folder'):
    content = EVERYTHING.get(kind)
    spoil(plan, content)
    line = complaint(
      '--config=configs/auto_cpu.py',
      '--mode=plan',
      f'--config.data.path={root}',
      f'--workdir={plan.parent}',
    )
    assert str(plan) in line and len(line) < 600, (kind, line)
    assert plan.is_dir() or plan.read_bytes() == content


@pytest.mark.parametrize('mode', ['train', 'plan', 'prepare', 'evaluate'])
def test_a_workdir_that_cannot_be_one_is_told_at_once(
  tmp_path, complaint, mode
):
  file = tmp_path / 'file'
  file.write_text('')
  (tmp_path / 'nothing').symlink_to(tmp_path / 'gone')
  for workdir, words in [
    (file, f'{file}: this is a file; allowed is a folder'),
    (file / 'run' / 'x', f'{file}/run/x: {file} is a file'),
    (tmp_path / 'nothing', 'cannot use (No such file'),
    (tmp_path / ('x' * 300), 'cannot use (File name too long)'),
  ]:
    line = complaint(f'--mode={mode}', UNET, f'--workdir={workdir}')
    assert words in line
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'nothing']


def test_a_workdir_that_cannot_be_written(tmp_path, complaint, monkeypatch):
  monkeypatch.setattr(os, 'access', lambda path, mode: False)  # not for root
  line = complaint(UNET, f'--workdir={tmp_path}/a/run')
  words = f'{tmp_path}/a/run: cannot write (Permission denied: {tmp_path})'
  assert_all_in(line, words, 'change the permissions')
  assert not (tmp_path / 'a').exists()


@pytest.mark.parametrize('form', ['model', 'stablehlo'])
def test_an_export_below_a_file_is_told_at_once(tmp_path, form):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError) as error:
    export.run(None, tmp_path, output=tmp_path / 'file' / 'x.zip', form=form)
  assert_one_line(
    error, f'{tmp_path}/file: this is a file; allowed is a folder'
  )


@pytest.mark.parametrize('number', sorted(errors._HELP))
def test_each_kind_of_error_says_file_reason_and_remedy(number, tmp_path):
  error = OSError(number, os.strerror(number), str(tmp_path / 'a'))
  line = errors.explain(error)
  assert line.startswith(f'{tmp_path}/a: {os.strerror(number)}; ')
  with pytest.raises(FileError) as caught, errors.doing('copy', tmp_path / 'a'):
    raise error
  words = f'{tmp_path}/a: cannot copy ({os.strerror(number)}); '
  assert_one_line(caught, words)
  assert caught.value.errno == number


def test_an_error_tells_of_both_files_and_once(tmp_path):
  folder = tmp_path
  with (
    pytest.raises(FileError) as caught,
    errors.doing('write', 'b', 'do x'),
    errors.doing('read', folder / 'in'),
  ):
    (folder / 'a').read_bytes()
  words = f'{folder}/in: cannot read (No such file or directory: {folder}/a)'
  assert str(caught.value) == f'{words}; check the name'
  with pytest.raises(FileError) as caught, errors.doing('write', 'b', 'do x'):
    raise OSError('5 requested and 3 written')
  assert (
    str(caught.value) == 'b: cannot write (5 requested and 3 written); do x'
  )
  assert errors.explain(OSError()) == 'OSError'
  with pytest.raises(OSError) as caught:
    os.stat('x' * 5000)
  assert 'File name too long' in errors.explain(caught.value)
  assert len(errors.explain(caught.value)) < 650
  with pytest.raises(InputError, match='^y$'), errors.doing('write', 'b'):
    raise InputError('y')


def test_quotes_are_short():
  assert errors.quote('abc') == "'abc'"
  assert errors.quote('x' * 5000) == f"'{'x' * 37}...{'x' * 18}'"
  assert errors.shorten('x' * 10, 10) == 'x' * 10


def test_metrics_that_cannot_be_written_name_the_file(tmp_path):
  (tmp_path / 'a' / 'metrics.jsonl').mkdir(parents=True)
  with pytest.raises(InputError) as error:
    MetricWriter(tmp_path / 'a')
  path = tmp_path / 'a' / 'metrics.jsonl'
  assert_one_line(error, f'{path}: cannot write the metrics (Is a directory)')


def test_a_picture_that_cannot_be_written_names_the_file(tmp_path):
  (tmp_path / 'panels').write_text('')
  with pytest.raises(InputError) as error:
    panels.save_png(
      tmp_path / 'panels' / 'a.png', panels.np.zeros((4, 4, 3), 'u1')
    )
  assert_one_line(
    error, f'{tmp_path}/panels/a.png: cannot write', 'is in the way'
  )


# Fills the disk, as far as this process can tell, once the metrics are open.
FULL = """
import resource, sys
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.metric_writer import MetricWriter
with MetricWriter(sys.argv[1]) as writer:
  resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))
  try:
    for step in range(100):
      writer.scalars(step, 'train', {'loss': 1.0})
  except InputError as error:
    print(error)
"""


def test_a_disk_that_fills_leaves_no_traceback_and_whole_lines(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', FULL, str(tmp_path)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert done.stderr == '' and done.returncode == 0
  assert done.stdout.startswith(f'{tmp_path}/')
  assert 'cannot write the metrics (File too large); ' in done.stdout
  MetricWriter(tmp_path).close()
  for line in (tmp_path / 'metrics.jsonl').read_bytes().splitlines(True):
    assert line.startswith(b'{"step": ') and line.endswith(b'}\n')


def test_the_last_resort_names_what_it_can(complaint, monkeypatch):
  monkeypatch.setattr(main.command_line, 'parse', lambda argv: None)
  for error, words in [
    (OSError(errno.ENOSPC, 'Full', 'a.nii'), 'a.nii: Full; free space'),
    (
      OSError(errno.ENOSPC, 'Full'),
      'cannot write a file or this output (Full)',
    ),
    (OSError('strange file'), 'error: strange file\n'),
    (RecursionError('maximum'), 'nested too deeply'),
    (ValueError('x' * 10_000), 'ValueError: xxxxx'),
  ]:

    def fail(error=error):
      raise error

    monkeypatch.setattr(main, '_run', fail)
    line = complaint()
    assert words in line and len(line) < 2100


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_a_log_on_a_full_disk_is_one_line():
  with open('/dev/full', 'w') as full:
    done = subprocess.run(
      [
        sys.executable,
        '-c',
        'import sys; from medseg_jax import main\n'
        'main.command_line.parse = lambda argv: None\n'
        'main._run = lambda: print("x" * 10)\n'
        'sys.exit(main.main())',
      ],
      cwd=ROOT,
      env={k: v for k, v in os.environ.items() if k != 'PYTHONUNBUFFERED'},
      stdout=full,
      stderr=subprocess.PIPE,
      text=True,
      timeout=HANG_S,
    )
  assert done.returncode == 1
  reason = os.strerror(errno.ENOSPC)
  assert done.stderr.startswith(f'error: stdout: cannot print ({reason}); free')
  assert done.stderr.count('\n') == 1
