"""Does pretraining on volumes without labels help where labels are few?

  python benchmarks/pretraining.py --data=.../Task04_Hippocampus --out=DIR
    [--labelled=10,20,40] [--seeds=0,1,2] [--steps=2000]
    [--pretrain-steps=2000] [--arms=scratch,longer,pretrained] [--scored=52]

Fold 0 of the five published ones (52 cases) is scored and used for nothing
else; of the other 208 each seed draws its labelled cases, 10 of them among its
20, among its 40. What is in none of these, 168 cases, is what a seed pretrains
on, once. The arms, all by `configs/auto_cpu.py` with the same plan, that of the
pretraining:

  scratch     --steps from random weights
  pretrained  --steps from the weights of the pretraining
  longer      from random weights, --steps and --pretrain-steps together: the
              same budget of computing as `pretrained`, all spent on labels

Every training is a command that anybody can type, and is printed; those that
are done are kept, a killed one goes on. Nothing is chosen on what is scored:
the last weights are scored once, and all settings are those of the config, for
every arm the same. `DIR/result.json` and the table at the end have mean Dice
over cases, classes and seeds, and differences to `scratch` with a 95 %
bootstrap interval over seeds and, paired, cases.
"""

import argparse
import csv
import json
import pathlib
import shlex
import shutil
import subprocess
import sys

import numpy as np

from medseg_jax.data import splits

ROOT = pathlib.Path(__file__).resolve().parent.parent
ARMS = ('scratch', 'longer', 'pretrained')
DRAWS, SEED = 10_000, 0  # of the bootstrap
# What configs/auto_cpu.py changes in configs/auto.py, for the pretraining.
ON_CPU = (
  '--config.dtype=float32',
  '--config.batch_size=2',
  '--config.patch_growth=(0.5, 0.625, 0.75, 1.0)',
  '--config.model.features=16',
  '--config.model.max_features=160',
  '--config.ema_decay=0.99',
  '--config.optimizer.name=adamw',
  '--config.optimizer.learning_rate=2e-3',
  '--config.optimizer.weight_decay=1e-3',
  '--config.schedule.name=cosine',
  '--config.schedule.warmup_fraction=0.03',
  '--config.log_every=50',
  '--config.checkpoint_every=250',
)


def main() -> int:
  args = parse()
  hold_settings(args)
  scored = scored_cases(args)
  pool = [name for name in names_of(args.data) if name not in scored[1]]
  runs = {}
  for seed in args.seeds:
    order = list(np.random.default_rng(seed).permutation(pool))
    folder = args.out / f'seed_{seed}'
    rest = sorted(order[max(args.labelled) :])
    pretrained = pretrain(args, folder, rest, seed)
    for count in args.labelled:
      chosen = sorted(order[:count])
      data = lay_out_labelled(args, folder, chosen, scored[0])
      for arm in args.arms:
        workdir = folder / f'{arm}_{count}'
        lay_out_workdir(args, workdir, data, chosen, scored[0], pretrained)
        train(args, workdir, data, arm, seed, pretrained)
        runs[arm, count, seed] = dice_of(workdir)
        tell(args, runs)
  return 0


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--labelled', type=numbers, default=(10, 20, 40))
  parser.add_argument('--seeds', type=numbers, default=(0, 1, 2))
  parser.add_argument('--steps', type=int, default=2000)
  parser.add_argument('--pretrain-steps', type=int, default=2000)
  parser.add_argument('--arms', type=words, default=ARMS)
  parser.add_argument('--scored', type=int, default=52, help='of fold 0')
  args = parser.parse_args()
  if not set(args.arms) <= set(ARMS):
    parser.error(f'--arms={",".join(args.arms)}; allowed are {",".join(ARMS)}')
  if not (args.data / 'imagesTr').is_dir():
    parser.error(f'--data={args.data}: no imagesTr in it')
  return args


def words(text: str) -> tuple[str, ...]:
  return tuple(text.split(','))


def numbers(text: str) -> tuple[int, ...]:
  return tuple(map(int, text.split(',')))


def hold_settings(args: argparse.Namespace) -> None:
  """Ends where `--out` holds runs of other lengths, or of other cases."""
  path = args.out / 'settings.json'
  # Seeds, sizes and arms may be added; but what is left for the pretraining
  # depends on the most labelled cases.
  settings = {
    'data': str(args.data.absolute()),
    'steps': args.steps,
    'pretrain_steps': args.pretrain_steps,
    'scored': args.scored,
    'most_labelled': max(args.labelled),
  }
  if path.exists() and (found := json.loads(path.read_text())) != settings:
    sys.exit(f'{path}: holds {found}, not {settings}; name another --out')
  args.out.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(settings, indent=1) + '\n')


def names_of(data: pathlib.Path) -> list[str]:
  paths = (data / 'imagesTr').glob('[!.]*.nii.gz')
  return sorted(path.name.removesuffix('.nii.gz') for path in paths)


def scored_cases(args: argparse.Namespace) -> tuple[list[str], list[str]]:
  """Returns the cases that are scored, and all that are never trained on."""
  held_out = splits.all_folds(names_of(args.data))[0]['val']
  return sorted(held_out)[: args.scored], held_out


def pretrain(
  args: argparse.Namespace, folder: pathlib.Path, rest: list[str], seed: int
) -> pathlib.Path:
  """Returns the workdir of a seed's pretraining."""
  data, workdir = folder / 'unlabelled', folder / 'pretraining'
  copy(args.data / 'imagesTr', data, rest)
  described = json.loads((args.data / 'dataset.json').read_text())
  key = 'channel_names' if 'channel_names' in described else 'modality'
  (data / 'dataset.json').write_text(json.dumps({key: described[key]}))
  if not (workdir / 'model' / 'model.json').exists():
    call(
      '--config=configs/pretrain.py',
      f'--workdir={workdir}',
      f'--config.data.path={data}',
      f'--config.seed={seed}',
      f'--config.num_steps={args.pretrain_steps}',
      *ON_CPU,
    )
  return workdir


def lay_out_labelled(
  args: argparse.Namespace,
  folder: pathlib.Path,
  chosen: list[str],
  scored: list[str],
) -> pathlib.Path:
  """Returns a data set of a seed's labelled cases and those that are scored."""
  data = folder / f'labelled_{len(chosen)}'
  for part in ('imagesTr', 'labelsTr'):
    copy(args.data / part, data / part, [*chosen, *scored])
  described = json.loads((args.data / 'dataset.json').read_text())
  for key in ('training', 'test', 'numTraining', 'numTest'):
    described.pop(key, None)
  (data / 'dataset.json').write_text(json.dumps(described))
  return data


def lay_out_workdir(
  args: argparse.Namespace,
  workdir: pathlib.Path,
  data: pathlib.Path,
  chosen: list[str],
  scored: list[str],
  pretrained: pathlib.Path,
) -> None:
  """Writes the split, and for every arm the plan that the pretraining had."""
  workdir.mkdir(parents=True, exist_ok=True)
  if not (workdir / 'splits.json').exists():
    fold = {'train': chosen, 'val': scored}
    splits.write_splits(workdir / 'splits.json', [fold])
  if not (workdir / 'plan.json').exists():
    call(
      '--mode=plan',
      '--config=configs/auto_cpu.py',
      f'--workdir={workdir}',
      f'--config.data.path={data}',
      f'--config.init_from={pretrained}/model',
    )


def train(
  args: argparse.Namespace,
  workdir: pathlib.Path,
  data: pathlib.Path,
  arm: str,
  seed: int,
  pretrained: pathlib.Path,
) -> None:
  """Trains and scores, unless that is done."""
  if (workdir / 'model' / 'model.json').exists():
    return
  steps = args.steps + args.pretrain_steps * (arm == 'longer')
  begin = []
  if arm == 'pretrained':
    begin.append(f'--config.init_from={pretrained}/model')
  call(
    '--config=configs/auto_cpu.py',
    f'--workdir={workdir}',
    f'--config.data.path={data}',
    f'--config.seed={seed}',
    f'--config.num_steps={steps}',
    '--config.eval_every=0',
    *begin,
  )


def copy(source: pathlib.Path, target: pathlib.Path, names: list[str]) -> None:
  target.mkdir(parents=True, exist_ok=True)
  for name in names:
    file = target / f'{name}.nii.gz'
    if not file.exists():
      part = file.with_name(f'.{file.name}.part')  # hidden files are no cases
      shutil.copyfile(source / file.name, part)
      part.rename(file)


def call(*flags: str) -> None:
  """Runs the program; ends as it does where that is not well."""
  command = [sys.executable, '-m', 'medseg_jax.main', *flags]
  print(f'\n$ {shlex.join(command)}', flush=True)
  status = subprocess.run(command, cwd=ROOT, check=False).returncode
  if status:
    sys.exit(status)


def dice_of(workdir: pathlib.Path) -> dict[str, float]:
  """Returns each case's mean Dice over the classes that it has."""
  found: dict[str, list[float]] = {}
  with open(workdir / 'evaluation' / 'val' / 'cases.csv') as file:
    for row in csv.DictReader(file):
      if row['class'] != 'background' and row['dice']:
        found.setdefault(row['case'], []).append(float(row['dice']))
  return {case: float(np.mean(values)) for case, values in found.items()}


def tell(
  args: argparse.Namespace,
  runs: dict[tuple[str, int, int], dict[str, float]],
) -> None:
  """Writes and prints what there is so far."""
  rows = []
  for count in args.labelled:
    for arm in args.arms:
      done = [s for s in args.seeds if (arm, count, s) in runs]
      if not done:
        continue
      means = [float(np.mean([*runs[arm, count, s].values()])) for s in done]
      row = {'arm': arm, 'labelled': count, 'seeds': done, 'dice': means}
      both = [s for s in done if ('scratch', count, s) in runs]
      if arm != 'scratch' and both:
        pairs = [(runs[arm, count, s], runs['scratch', count, s]) for s in both]
        row['difference'], row['ci95'] = difference(pairs)
      rows.append(row)
  settings = json.loads((args.out / 'settings.json').read_text())
  text = json.dumps({'settings': settings, 'rows': rows}, indent=1)
  (args.out / 'result.json').write_text(text + '\n')
  print(f'\n{table(rows)}\n', flush=True)


def difference(
  pairs: list[tuple[dict[str, float], dict[str, float]]],
) -> tuple[float, list[float]]:
  """Returns the mean difference of Dice, and its 95 % bootstrap interval.

  Seeds and cases are drawn anew, each with replacement, the same cases for all
  seeds; the percentiles of the means are the interval.

  Args:
    pairs: for each seed the Dice of each case, of both arms.
  """
  cases = sorted(set.intersection(*(set(a) & set(b) for a, b in pairs)))
  gaps = np.array([[a[c] - b[c] for c in cases] for a, b in pairs])
  rng = np.random.default_rng(SEED)
  seeds = rng.integers(0, len(gaps), (DRAWS, len(gaps)))
  drawn = rng.integers(0, len(cases), (DRAWS, len(cases)))
  means = [gaps[s][:, c].mean() for s, c in zip(seeds, drawn, strict=True)]
  low, high = np.percentile(means, [2.5, 97.5])
  return float(gaps.mean()), [float(low), float(high)]


def table(rows: list[dict]) -> str:
  lines = [
    '| labelled | arm | Dice of each seed | mean | more than scratch |',
    '|---|---|---|---|---|',
  ]
  for row in rows:
    each = ', '.join(f'{value:.4f}' for value in row['dice'])
    more = ''
    if 'difference' in row:
      low, high = row['ci95']
      more = f'{row["difference"]:+.4f} ({low:+.4f} to {high:+.4f})'
    lines.append(
      f'| {row["labelled"]} | {row["arm"]} | {each} | '
      f'{np.mean(row["dice"]):.4f} | {more} |'
    )
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(main())
