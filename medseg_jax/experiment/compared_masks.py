"""The masks that were scored, for pictures of the cases that changed."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from medseg_jax.data.sources import mask_pairs
from medseg_jax.experiment import scored_cases, trained_model
from medseg_jax.inference.cases import predict_cases
from medseg_jax.runtime import sharding
from medseg_jax.runtime.errors import InputError


class Masks(NamedTuple):
  """What was scored of one case.

  Attributes:
    image: [*S, C], or None where only masks were there.
    label: [*S], class indices, -1 where ignored.
    pred: [*S], class indices.
    classes: their names, background first.
    spacing: mm, of each axis.
  """

  image: np.ndarray | None
  label: np.ndarray
  pred: np.ndarray
  classes: tuple[str, ...]
  spacing: tuple[float, ...]


def masks_of(
  summary: Mapping, workdir: pathlib.Path | None, names: Sequence[str]
) -> Iterator[Masks]:
  """Yields the masks of some cases of a report.

  Those that `--mode=score` was given are read, others are predicted again.

  Args:
    summary: what `summary.json` says.
    workdir: that the report lies in, of a training; None where of none.
    names: of the cases.

  Raises:
    InputError: they are not where they were, or of another kind of report.
  """
  if 'predictions' in summary:
    yield from _read(summary, names)
  elif workdir is not None:
    yield from _predict(workdir, summary, names)
  else:
    raise InputError('the report lies in no workdir of a training')


def _read(summary: Mapping, names: Sequence[str]) -> Iterator[Masks]:
  labels = pathlib.Path(summary['labels'])
  matched = mask_pairs.match_masks(pathlib.Path(summary['predictions']), labels)
  source = mask_pairs.open_pairs(matched, labels, **summary['settings'])
  for name in _present(names, source.names):
    pair = mask_pairs.read_pair(source, source.names.index(name))
    # One more than the last class stands for values of no class.
    pred = np.where(pair.pred < len(source.classes), pair.pred, 0)
    yield Masks(None, pair.label, pred, tuple(source.classes), pair.spacing)


def _predict(
  workdir: pathlib.Path, summary: Mapping, names: Sequence[str]
) -> Iterator[Masks]:
  checkpoint = ''  # the model that its training ended with
  config = trained_model.read_config(workdir, None, checkpoint)
  cases = scored_cases.choose(config, workdir, split=summary['split'])
  trained = trained_model.load_predictor(
    config, workdir, checkpoint=checkpoint, mesh=sharding.local_mesh()
  )
  if trained.step != summary['step']:
    raise InputError(
      f'{workdir} has the weights of step {trained.step}, the report is of '
      f'step {summary["step"]}'
    )
  source = cases.source.subset(_present(names, cases.source.names))
  predicted = predict_cases(
    trained.predict_fn,
    (source[i] for i in range(len(source))),
    **trained.settings,
  )
  for prediction in predicted:
    case = prediction.case
    yield Masks(
      case.image,
      case.label,
      prediction.label,
      tuple(source.classes),
      case.spacing,
    )


def _present(names: Sequence[str], there: Sequence[str]) -> Sequence[str]:
  if gone := [name for name in names if name not in there]:
    raise InputError(f'case {gone[0]} is not there any more')
  return names
