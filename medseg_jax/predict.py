"""Segments new images with a trained model: `--mode=predict`."""

import pathlib

from ml_collections import ConfigDict

from medseg_jax import experiment, segment
from medseg_jax.data.case import Case
from medseg_jax.data.images import list_images, read_image, write_mask
from medseg_jax.data.preprocess import preprocess_image
from medseg_jax.errors import InputError
from medseg_jax.panels import panel, save_png
from medseg_jax.progress import Progress

NUM_PANELS = 3  # pictures of the first cases, to look at


def run(
  config: ConfigDict,
  workdir: pathlib.Path,
  *,
  input_dir: pathlib.Path,
  output_dir: pathlib.Path,
  checkpoint: str = 'best',
) -> None:
  """Writes a mask for every image of `input_dir`, at the image's own size.

  A mask is a PNG of the image's stem that holds the label values of the
  training masks. Masks that are there already are never overwritten.

  Raises:
    InputError: nothing to read, nowhere to write, or a mask is there already.
  """
  paths = list_images(input_dir)
  targets = [output_dir / f'{path.stem}.png' for path in paths]
  _check(paths, targets, config)
  output_dir.mkdir(parents=True, exist_ok=True)
  predictor = experiment.load_predictor(config, workdir, checkpoint)
  settings = experiment.prediction_settings(config, experiment.mesh_of(config))
  classes = tuple(config.data.classes)
  label_values = tuple(config.data.label_values)
  with Progress(len(paths), unit='case', desc='predict') as progress:
    predicted = segment.predict_cases(
      predictor.predict_fn, map(_read, paths), **settings
    )
    for i, (case, pred) in enumerate(predicted):
      write_mask(targets[i], pred, label_values)
      if i < NUM_PANELS:
        picture = panel(case.image, None, pred, classes, title=case.name)
        save_png(workdir / 'panels' / f'predict_{case.name}.png', picture)
      progress.advance()
  values = ', '.join(
    f'{value} {name}'
    for value, name in zip(label_values, classes, strict=True)
  )
  print(
    f'{len(paths)} masks in {output_dir} ({predictor.which} weights, step '
    f'{predictor.step}); values: {values}'
  )
  print(f'pictures  {workdir}/panels/predict_*.png', flush=True)


def _check(
  paths: list[pathlib.Path], targets: list[pathlib.Path], config: ConfigDict
) -> None:
  """Reads every image once, so that a bad one ends nothing half done."""
  preprocessing = experiment.preprocessing_of(config)
  for path, target in zip(paths, targets, strict=True):
    if target.exists():
      raise InputError(
        f'{target} is there already and is not overwritten; name another '
        '--output or move it away'
      )
    case = segment.match_channels(_read(path), config.data.channels)
    preprocess_image(case, preprocessing)


def _read(path: pathlib.Path) -> Case:
  image = read_image(path)
  return Case(path.stem, image, None, (1.0,) * (image.ndim - 1))
