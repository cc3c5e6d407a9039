"""What a person reads about a trained model: README.md in its folder.

Made of `model.json` alone, so that both say the same. Names of cases, which may
be those of patients, and of folders stay out of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

CARD = 'README.md'
_LIMITS = """\
* Not for clinical use without validation on data of the place where it is used.
* Images that differ from those it was trained on - another scanner, protocol,
  body region, age, disease - may be segmented wrongly, without a warning.
* What is none of the classes is background, or part of a class that looks like
  it.
* The scores are of held-out cases of the same data set. They tell nothing of
  other data, or of groups of patients that are rare in it.
"""


def of_model(description: Mapping[str, Any]) -> str:
  """Returns the card of a single model.

  Args:
    description: content of `model.json`, see `model_folder.describe`.
  """
  training = description['training']
  counts = [f'{n} {split}' for split, n in training['num_cases'].items()]
  network = description['network']
  steps = f'{training["step"]} steps, {training["checkpoint"]} weights'
  if training.get('stopped_early'):
    steps += ', ended where validation stood still'
  made = [
    ('Network', f'{network["name"]}, {network["dtype"]}'),
    ('Training', steps),
    ('Cases', ', '.join(counts)),
  ]
  return _card(description, description, made=made)


def of_ensemble(
  description: Mapping[str, Any], first: Mapping[str, Any]
) -> str:
  """Returns the card of an ensemble.

  Args:
    description: content of its `model.json`, see `ensemble.write`.
    first: that of its first member.
  """
  members = [
    f'{len(own["members"])} x {own["name"]}'
    for own in description['configurations']
  ]
  made = [('Members', ', '.join(members))]
  if description['postprocessing']:
    made.append(('Post-processing', 'steps learnt on held-out cases'))
  if description['calibration']:
    made.append(('Calibration', 'learnt on held-out cases'))
  return _card(description, first, made=made)


def _card(
  description: Mapping[str, Any],
  model: Mapping[str, Any],
  *,
  made: Sequence[tuple[str, str]],
) -> str:
  """Returns the card; `model` has what all members have in common."""
  written = description['written_by']
  scores = description['scores']
  classes = ', '.join(
    f'{value} {_word(name)}'
    for value, name in zip(model['label_values'], model['classes'], strict=True)
  )
  facts = [
    *made,
    ('Written by', f'medseg_jax {written["medseg_jax"]}, {written["date"]}'),
  ]
  data = [
    ('Channels', ', '.join(map(_word, model['channel_names']))),
    ('Values of a mask', classes or 'none: a network to begin with'),
    *_preprocessing(model['preprocessing']),
  ]
  parts = [
    '# Model card',
    _listed(facts),
    '## Intended use',
    'Segmenting images of the kind that it was trained on, for research, and '
    'beginning trainings on other data:\n\n'
    '    medseg-jax --mode=predict --model=THIS_FOLDER --input=SCANS '
    '--output=MASKS',
    '## Images in, masks out',
    _listed(data),
    '## Scores',
    _scores(scores) if scores else 'Nothing was held out, so it has none.',
    '## Limits',
    _LIMITS.rstrip(),
    '## To be filled in by whoever hands it on',
    '* Where the images come from, who labelled them, and consent\n'
    '* Licence of the model',
  ]
  return '\n\n'.join(parts) + '\n'


def _preprocessing(stored: Mapping[str, Any]) -> list[tuple[str, str]]:
  window = ' to '.join(f'{value:g}' for value in stored['window'])
  rows = [('Intensities', f'{stored["normalize"]} {window}'.rstrip())]
  if stored['resize']:
    rows.append(('Resized to', f'{_tuple(stored["resize"])} pixels'))
  if stored['spacing']:
    spacing = _tuple(stored['spacing'])
    rows.append(('Resampled to', f"{spacing} mm, in the network's axes"))
  return rows


def _scores(scores: Mapping[str, Any]) -> str:
  """Returns what was scored, and a table with a row for each class."""
  lines = [
    f'Of {scores["num_cases"]} held-out cases ({scores["split"]}): means, with '
    '95 % bootstrap intervals over cases.',
    '',
    '| class | Dice | 95 % | HD95 mm | cases |',
    '|---|---|---|---|---|',
  ]
  rows = [*scores['classes'].items(), ('foreground mean', scores['mean'])]
  for name, value in rows:
    interval = value.get('dice_ci95')
    cells = [
      _number(value.get('dice'), 3),
      ' to '.join(_number(x, 3) for x in interval) if interval else '-',
      _number(value.get('hausdorff_95'), 2),
      str(value.get('n_valid', '')),
    ]
    lines.append(f'| {_word(name)} | {" | ".join(cells)} |')
  if scores.get('num_failed'):
    lines += ['', f'{scores["num_failed"]} cases could not be scored.']
  return '\n'.join(lines)


def _listed(rows: Sequence[tuple[str, str]]) -> str:
  return '\n'.join(f'* {name}: {text}' for name, text in rows)


def _word(name: str) -> str:
  """Returns a name as it stands in a table of Markdown."""
  return ' '.join(str(name).split()).replace('|', '\\|')


def _number(value: float | None, digits: int) -> str:
  return '-' if value is None else f'{value:.{digits}f}'


def _tuple(values: Sequence[float]) -> str:
  return ' x '.join(f'{value:g}' for value in values)
