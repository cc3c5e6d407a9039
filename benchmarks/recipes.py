"""Compares recipes on cases of fold 0 that train, so that none it scores helps.

  python benchmarks/recipes.py DATA OUT [--only=NAME,...] [--steps=10000]

DATA is a data set of volumes. The cases that fold 0 of its five folds trains on
become a data set of their own, OUT/data, and every recipe of `RECIPES` trains
on four fifths of that and is scored on the rest: one after the other, each with
a workdir OUT/NAME, so that a stopped comparison goes on. The table at the end
lists mean Dice by class with 95 % intervals, and what was not run. A step on
whole patches takes as long as 2.3 on growing ones: give `--steps` by recipe.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

from medseg_jax.data import splits
from medseg_jax.data.sources.volumes import open_volumes
from medseg_jax.runtime.files import write_atomically

ROOT = pathlib.Path(__file__).resolve().parent.parent
NUM_FOLDS = 5
# Anterior and posterior are ordered along another axis.
LEFT_RIGHT: dict[str, object] = {'augment.flip_axes': (2,)}
# What each changes in configs/auto_cpu.py. Those from a public search on this
# data (AdamW at 8e-3, cross-entropy alone, weaker augmentation, dropout, more
# foreground, wider networks, mirroring left and right alone) one by one.
RECIPES: dict[str, dict[str, object]] = {
  'as_it_is': {},
  'left_right': LEFT_RIGHT,
  'left_right_whole_patches': LEFT_RIGHT | {'patch_growth': ()},
  'learning_rate_4e-3': LEFT_RIGHT | {'optimizer.learning_rate': 4e-3},
  'learning_rate_8e-3': LEFT_RIGHT | {'optimizer.learning_rate': 8e-3},
  'weight_decay_1e-2': LEFT_RIGHT | {'optimizer.weight_decay': 1e-2},
  'cross_entropy': LEFT_RIGHT | {'loss.dice_loss': 0.0},
  'dropout_0.1': LEFT_RIGHT | {'model.dropout': 0.1},
  'foreground_0.58': LEFT_RIGHT | {'data.foreground_share': 0.58},
  'ema_0.999': LEFT_RIGHT | {'ema_decay': 0.999},
  'features_24': LEFT_RIGHT | {'model.features': 24},
}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('data', type=pathlib.Path)
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('--only', default=','.join(RECIPES))
  parser.add_argument('--steps', type=int, default=10_000)
  options = parser.parse_args()
  names = options.only.split(',')
  if unknown := set(names) - set(RECIPES):
    print(f'no recipe {", ".join(unknown)}; there are {", ".join(RECIPES)}')
    return 1
  data = take_training_cases(options.data, options.out / 'data')
  for name in names:
    changes = RECIPES[name] | {'num_steps': options.steps}
    status = subprocess.call(
      [sys.executable, '-m', 'medseg_jax.main', '--config=configs/auto_cpu.py']
      + [f'--config.{key}={value}' for key, value in changes.items()]
      + [f'--config.data.path={data}', f'--workdir={options.out / name}'],
      cwd=ROOT,
      env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    if status:
      return status
    print(table(options.out), flush=True)
  return 0


def take_training_cases(
  data: pathlib.Path, folder: pathlib.Path
) -> pathlib.Path:
  """Returns a data set of the cases that fold 0 of another trains on."""
  if (folder / 'dataset.json').exists():
    return folder
  source = open_volumes(data)['train']
  fold = splits.all_folds(source.names, num_folds=NUM_FOLDS)[0]
  for name in ('imagesTr', 'labelsTr'):
    (folder / name).mkdir(parents=True, exist_ok=True)
  content = json.loads((data / 'dataset.json').read_text())
  content['training'], content['test'] = [], []
  for case, files in zip(source.names, source.files, strict=True):
    if case in fold['train']:
      image, label = files.images[0], files.label
      shutil.copy(image, folder / 'imagesTr' / image.name)
      shutil.copy(label, folder / 'labelsTr' / label.name)
      content['training'].append(
        {
          'image': f'./imagesTr/{image.name}',
          'label': f'./labelsTr/{label.name}',
        }
      )
  content['numTraining'], content['numTest'] = len(content['training']), 0
  # Last: with it the data set is whole.
  write_atomically(folder / 'dataset.json', json.dumps(content).encode())
  return folder.resolve()


def table(out: pathlib.Path) -> str:
  """Returns what has been measured, a line for each recipe."""
  lines = []
  for name in RECIPES:
    path = out / name / 'evaluation' / 'val' / 'summary.json'
    if not path.exists():
      lines.append(f'{name:<24} not run')
      continue
    found = json.loads(path.read_text())
    scores = '  '.join(
      '{} {:.4f} ({:.4f}-{:.4f})'.format(each, of['dice'], *of['dice_ci95'])
      for each, of in found['classes'].items()
      if each != 'background'
    )
    lines.append(
      f'{name:<24} {scores}  {found["num_cases"]} cases, step {found["step"]}'
    )
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(main())
