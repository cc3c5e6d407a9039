"""What `--help` prints: the modes with an example each, then their flags."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from absl import flags

_WIDTH = 80
_ALL = ('mode', 'debug', 'completion')  # flags of every mode
# What stands behind the `=` of flags that are no enumerations.
_WORDS = {
  **{'config': 'FILE', 'workdir': 'DIR', 'model': 'PATH', 'input': 'PATH'},
  **{'output': 'PATH', 'predictions': 'DIR', 'labels': 'DIR', 'runs': 'A,B'},
  **{'series': 'WHICH', 'formats': 'A,B,...', 'topology': 'NAME'},
  **{'send': 'ARCHIVE'},
}
# Flags whose values are names of files.
PATHS = tuple(
  name for name, word in _WORDS.items() if word in ('FILE', 'DIR', 'PATH')
)


class Mode(NamedTuple):
  """What a mode is for.

  Attributes:
    does: one sentence.
    takes: names of its flags, but for those of every mode.
    example: its flags in a command that makes sense.
  """

  does: str
  takes: tuple[str, ...]
  example: str


MODES = {
  'train': Mode(
    'Prepares the data, trains, and evaluates the held-out split. Goes on from '
    'the newest checkpoint of the workdir.',
    ('config', 'workdir'),
    '--config=configs/unet.py --config.num_steps=200',
  ),
  'crossval': Mode(
    'Trains every fold, scores all of them as one set, and writes the '
    'ensemble. Goes on where it was.',
    ('config', 'workdir'),
    '--config=configs/auto.py --mode=crossval --config.data.path=Task04',
  ),
  'learning_curve': Mode(
    'Trains nested shares of the cases: what more data would give.',
    ('config', 'workdir'),
    '--config=configs/auto.py --mode=learning_curve --config.data.path=Task04',
  ),
  'plan': Mode(
    'Checks every volume, writes and prints plan.json.',
    ('config', 'workdir'),
    '--config=configs/auto.py --mode=plan --config.data.path=Task04',
  ),
  'prepare': Mode(
    'Plans, and preprocesses the data into the cache.',
    ('config', 'workdir'),
    '--config=configs/auto.py --mode=prepare --config.data.path=Task04',
  ),
  'benchmark': Mode(
    'Measures throughput and where the time goes.',
    ('config', 'workdir'),
    '--config=configs/unet.py --mode=benchmark',
  ),
  'compile': Mode(
    'Compiles for hardware that is not there: memory, operations, bytes.',
    ('config', 'workdir', 'topology'),
    '--config=benchmarks/unet_3d.py --mode=compile --topology=h100:8',
  ),
  'evaluate': Mode(
    'Scores a trained model on the cases that were held out, on a split, or on '
    'other data.',
    ('workdir', 'model', 'config', 'checkpoint', 'split'),
    '--mode=evaluate --workdir=runs/unet --config.data.path=other_hospital',
  ),
  'predict': Mode(
    'Writes a mask for every image of --input into --output.',
    ('workdir', 'model', 'config', 'checkpoint', 'input', 'output', 'formats')
    + ('series', 'overwrite', 'send'),
    '--mode=predict --model=liver.zip --input=scans --output=masks',
  ),
  'followup': Mode(
    'Segments two time points of a patient and tells which lesions are new, '
    'gone, grown or shrunk.',
    ('workdir', 'model', 'config', 'checkpoint', 'input', 'output', 'formats')
    + ('series', 'overwrite'),
    '--mode=followup --model=liver.zip --input=march --input=june --output=out',
  ),
  'export': Mode(
    'Writes a trained model to the file --output.',
    ('workdir', 'model', 'config', 'checkpoint', 'output', 'format'),
    '--mode=export --workdir=runs/unet --output=unet.zip',
  ),
  'score': Mode(
    'Compares masks that any program made with labels.',
    ('workdir', 'predictions', 'labels', 'output', 'overwrite'),
    '--mode=score --predictions=masks --labels=labelsTs',
  ),
  'compare': Mode(
    'Tells paired differences of two results on the same cases.',
    ('workdir', 'runs', 'predictions', 'labels', 'split', 'output')
    + ('overwrite',),
    '--mode=compare --runs=runs/a,runs/b',
  ),
}


def text(
  known: flags.FlagValues,
  groups: Mapping[str, Sequence[str]],
  only: str | None = None,
) -> str:
  """Returns the help.

  Args:
    known: the flags, with their own words.
    groups: heading -> names of modes.
    only: the mode to tell of; None for all.
  """
  lines = [
    'medseg-jax --config=FILE [--mode=MODE] [--workdir=DIR] '
    '[--config.key=value ...]',
    'or python -m medseg_jax.main in place of the first word. configs/unet.py',
    'has every key.',
  ]
  for heading, modes in groups.items():
    shown = [name for name in modes if only in (None, name)]
    lines += ['', f'{heading}:'] if shown else []
    for name in shown:
      mode = MODES[name]
      lines += _wrapped(f'  {name:<15} ', mode.does)
      example = _wrapped(' ' * 18, f'medseg-jax {mode.example}', _WIDTH - 2)
      lines += [*(f'{line} \\' for line in example[:-1]), example[-1]]
  served: dict[tuple[str, ...], list[str]] = {}
  for flag in names():
    modes = tuple(name for name, mode in MODES.items() if flag in mode.takes)
    if modes and (only is None or only in modes):
      served.setdefault((only,) if only else modes, []).append(flag)
  served['every mode',] = list(_ALL)
  for modes, of_these in served.items():
    lines += ['', *_wrapped('', f'Flags of {", ".join(modes)}:')]
    for flag in of_these:
      lines += _described(known[flag])
  if only is None:
    lines += ['', '--mode=MODE --help tells of one mode.']
  return '\n'.join(lines)


def names() -> list[str]:
  """Returns the names of all flags."""
  of_modes = [flag for mode in MODES.values() for flag in mode.takes]
  return list(dict.fromkeys([*_ALL, *of_modes]))


def values_of(flag: flags.Flag) -> tuple[str, ...]:
  """Returns the values that a flag may have, () where there is no list."""
  return tuple(getattr(flag.parser, 'enum_values', None) or ())


def _described(flag: flags.Flag) -> list[str]:
  word = '|'.join(values_of(flag)) or _WORDS.get(flag.name, '')
  if flag.name == 'mode':
    word = 'MODE'
  head = f'  --{flag.name}' + (f'={word}' if word else '')
  # Of an enumeration absl writes '<values>: ' before the words.
  words = flag.help.partition('>: ')[2] if values_of(flag) else flag.help
  if flag.default and 'Default' not in words:
    words = f'{words.strip()} Default: {flag.default}.'
  return [head, *_wrapped(' ' * 6, words)]


def _wrapped(head: str, words: str, width: int = _WIDTH) -> list[str]:
  return textwrap.wrap(
    words,
    width,
    initial_indent=head,
    subsequent_indent=' ' * len(head),
    break_long_words=False,
    break_on_hyphens=False,
  )
