"""What the cases of a training were like, and which others are unlike them."""

import pathlib
from collections.abc import Iterator, Sequence

from medseg_jax.experiment import ensemble
from medseg_jax.experiment.prediction_record import Record
from medseg_jax.experiment.prediction_targets import Job
from medseg_jax.report.unlike_training import Training, training_of_plan
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.runtime.files import read_json

FAR = 'far_from_training'  # key of what is told of a case
_MOST = 20  # lines


def read(
  workdir: pathlib.Path | None, model: pathlib.Path | None
) -> Training | None:
  """Returns what the plan of a training or of a model says of its cases.

  Of an ensemble that of its first member: the members of a cross-validation
  have one plan, that of all cases.

  Args:
    workdir: of the training, which may hold `plan.json`.
    model: a model folder or its zip, which is asked in place of the workdir.
  """
  if model is not None:
    plan = ensemble.read(model).members[0].description.get('plan')
    return training_of_plan(plan)
  path = workdir / 'plan.json'
  try:
    plan = read_json(path, 'a plan') if path.exists() else None
  except InputError:  # somebody has edited it: nobody is refused for that
    return None
  return training_of_plan(plan)


def unlike(jobs: Sequence[Job], record: Record, weights: str) -> Iterator[str]:
  """Yields a line for each thing that sets a case apart from the training.

  Of many only the first.

  Args:
    jobs: whose masks may be there.
    record: of the folder of the masks.
    weights: hash of those of the masks; what others made is left out.
  """
  found = []
  for job in jobs:
    line = record.lines.get(record.name_of(job.target), {})
    if line.get('weights') == weights:
      found += [f'{job.shown}: {text}' for text in line.get(FAR, ())]
  yield from found[:_MOST]
  if (more := len(found) - _MOST) > 0:
    yield f'{counted(more, "more thing")} far from the training'
