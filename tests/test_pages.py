"""What the pages name is there: flags, keys, files, imports, links."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver
from conftest import ROOT
from ml_collections import ConfigDict
from small import load

from medseg_jax import command_line
from medseg_jax.experiment import overrides

sys.path.append(str(ROOT / 'docs'))
generated = importlib.import_module('generated')

PAGES = sorted(
  [*ROOT.glob('docs/**/*.md'), ROOT / 'README.md', ROOT / 'BUILD.md']
)
each_page = pytest.mark.parametrize(
  'page', PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES]
)
# Blocks of code: language, title, content.
BLOCK = re.compile(
  r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL
)
HEREDOC = re.compile(r"<<'END'\n(.*?)^END$", re.MULTILINE | re.DOTALL)
PROGRAM = 'python -m medseg_jax.main'
# Of other programs, as the pages give them to these.
FOREIGN = ('--nodes', '--gpus-per-node', '--ntasks-per-node', '--strict')
# Places for what the reader puts there.
OPEN = ('--config=FILE', '--config=configs/NAME.py', '--config.key')
FOLDERS = ('benchmarks', 'configs', 'launch', 'docs', 'tests', 'medseg_jax')


def blocks(page, *languages):
  return [m for m in BLOCK.findall(page.read_text()) if m[0] in languages]


def made_by(page):
  """Returns the names of the files that a page asks its reader to write."""
  return {title for _, title, _ in blocks(page, 'python')}


def commands(page):
  """Returns each call of the program in a page's blocks, as words."""
  found = []
  for _, _, content in blocks(page, '', 'sh'):
    lines = HEREDOC.sub('', content).replace('\\\n', ' ').split('\n')
    for line in lines:
      if PROGRAM in line:
        found.append(shlex.split(line.split(PROGRAM, 1)[1], comments=True))
      elif line.startswith(('sbatch', 'launch/tpu_vm.sh')):
        found.append([w for w in shlex.split(line) if '--config' in w])
  return found


@each_page
def test_the_program_takes_every_command(page, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  stand_in = tmp_path / 'mine' / 'config.py'
  stand_in.parent.mkdir()
  stand_in.write_text((ROOT / 'configs' / 'unet.py').read_text())
  for words in commands(page):
    if any(place in word for word in words for place in OPEN):
      continue
    written = {f'--config={name}' for name in made_by(page)}
    words = [f'--config={stand_in}' if w in written else w for w in words]
    with flagsaver.flagsaver():
      command_line.parse(['main', *words])
      if command_line.OVERRIDES:
        overrides.apply(load('unet'), command_line.OVERRIDES)
      command_line.workdir()


@each_page
def test_every_key_and_flag_is_real(page):
  config, text = load('unet').to_dict(), page.read_text()
  modes = flags.FLAGS['mode'].parser.enum_values
  for value in re.findall(r'--mode=(\w+)', text):
    assert value in (*modes, 'MODE')
  for key in re.findall(r'--config\.([a-z_.]+)', text):
    section = {**config, 'key': ''}
    for part in key.rstrip('.').split('.'):
      assert part in section, key
      section = section[part]
  scripts = ''.join(
    path.read_text()
    for path in [*ROOT.glob('benchmarks/*.py'), *ROOT.glob('launch/*.sh')]
  )
  if page.name == 'coming-from.md':  # first what others have
    text = re.sub(r'^\|.*?\|', '|', text, flags=re.MULTILINE)
  for flag in re.findall(r'`(--[a-z][a-z_-]*)', text):
    known = flag.removeprefix('--') in {*flags.FLAGS, 'help', 'config'}
    assert known or flag in FOREIGN or flag in scripts, flag


@each_page
def test_every_file_and_link_is_there(page):
  text = page.read_text()
  for path in re.findall(r'[\w/.]+/[\w.-]+\.(?:py|sh|yaml|md|json)\b', text):
    if path.split('/')[0] in FOLDERS and 'NAME' not in path:
      assert (ROOT / path).is_file() or path in made_by(page), path
  for link in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', text):
    assert (page.parent / link).exists(), link


@each_page
def test_every_import_is_real(page):
  sources = [content for _, _, content in blocks(page, 'python')]
  for _, _, content in blocks(page, 'sh'):
    sources += HEREDOC.findall(content)
  for source in sources:
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, ast.ImportFrom):
        module = importlib.import_module(node.module)
        for alias in node.names:
          assert hasattr(module, alias.name) or importlib.import_module(
            f'{node.module}.{alias.name}'
          )
      elif isinstance(node, ast.Import):
        for alias in node.names:
          importlib.import_module(alias.name)


def leaves(config: ConfigDict, prefix=''):
  for name, value in config.items():
    if isinstance(value, ConfigDict) and len(value):
      yield from leaves(value, f'{prefix}{name}.')
    else:
      yield prefix + name


def test_the_list_of_keys_is_complete():
  text = generated.config_keys()
  source = (ROOT / 'configs' / 'unet.py').read_text()
  keys = [key for key in generated.read_keys(source) if key.default]
  config = load('unet')
  assert sorted(key.name for key in keys) == sorted(leaves(config))
  for key in keys:
    assert f'* `{key.name}` = ' in text
  # With the comments above and behind them, also those of a section.
  assert '`mesh.data` = `-1`: devices that share a batch; -1 for all' in text
  assert 'Name -&gt; weight in the sum' in text


def test_the_list_of_flags_is_complete():
  text = generated.flags()
  for name in ('config', 'mode', 'workdir', 'model', 'formats', 'debug'):
    assert f'`--{name}`' in text
  for mode in flags.FLAGS['mode'].parser.enum_values:
    assert f'`{mode}`' in text
    assert f'| `{mode}` |' in (ROOT / 'docs/reference/commands.md').read_text()


def test_every_page_is_in_the_menu():
  menu = (ROOT / 'mkdocs.yml').read_text()
  for page in (ROOT / 'docs').rglob('*.md'):
    assert str(page.relative_to(ROOT / 'docs')) in menu


def test_the_built_pages_ask_no_network(tmp_path):
  pytest.importorskip('mkdocs', reason="needs pip install -e '.[docs]'")
  subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--quiet', '--strict']
    + ['--site-dir', str(tmp_path / 'site')],
    cwd=ROOT,
    env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'},
    check=True,
  )
  built = list(tmp_path.glob('site/**/*.html'))
  assert len(built) > len(PAGES) - 3
  for page in built:
    text = page.read_text()
    for tag in re.findall(r'<(?:script|link|img|iframe|source)\b[^>]*>', text):
      assert '//' not in tag, (page, tag)
    assert '<!-- config keys' not in text and '<!-- flags' not in text
  # Flags in a narrow cell are marked, in code that is a block none are.
  table = (tmp_path / 'site' / 'coming-from.html').read_text()
  assert '<code><span class="word">--config.init_from=MODEL</span>' in table
  for page in built:
    for block in re.findall(r'<pre>.*?</pre>', page.read_text(), re.DOTALL):
      assert 'class="word"' not in block, page
