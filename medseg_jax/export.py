"""Writes a trained model for other machines and programs: `--mode=export`."""

import pathlib

from ml_collections import ConfigDict

from medseg_jax.experiment import model_folder, trained_model
from medseg_jax.runtime.errors import InputError


def run(
  config: ConfigDict,
  workdir: pathlib.Path,
  *,
  output: pathlib.Path,
  form: str = 'model',
  checkpoint: str = '',
  model: pathlib.Path | None = None,
) -> None:
  """Writes the trained model to the file `output`, which must be free.

  Args:
    config: resolved, as training left it.
    workdir: of the training.
    output: the file to write.
    form: 'model', the zip of the model folder.
    checkpoint: see `trained_model.find_folder`.
    model: likewise.

  Raises:
    InputError: there is no finished model, or `output` is there already.
  """
  folder = trained_model.find_folder(workdir, model, checkpoint)
  if folder is None:
    raise InputError(
      f'{workdir} has no finished model/ to export; end its training first'
    )
  model_folder.pack(folder, output)
  print(f'model     {output}', flush=True)
