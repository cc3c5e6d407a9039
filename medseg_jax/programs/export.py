"""Writes a trained model for other machines and programs: `--mode=export`."""

import pathlib

from ml_collections import ConfigDict

from medseg_jax.experiment import build, cascade, ensemble, trained_model
from medseg_jax.inference import exporting
from medseg_jax.runtime import sharding
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.runtime.files import check_writable, write_atomically


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

  A program ('stablehlo', 'onnx') takes preprocessed tiles to logits;
  `output`.txt says how to call it.

  Args:
    config: resolved, as training left it; for programs, what it says of the
      tiles holds.
    workdir: of the training.
    output: the file to write.
    form: 'model', the zip of the model folder, 'stablehlo' or 'onnx'.
    checkpoint: 'best' or 'latest'; '' for the model that training ended with.
    model: a model folder or its zip, in place of the workdir's.

  Raises:
    InputError: there is no such model, it cannot be written in this form, or
      `output` is there already.
  """
  check_writable(output.parent)  # before all that takes time
  folder = trained_model.find_folder(workdir, model, checkpoint)
  if form == 'model':
    if folder is None or not folder.is_dir():
      raise InputError(
        f'{folder or workdir}: no folder model/ of a finished training, which '
        'is what --format=model packs'
      )
    ensemble.pack(folder, output)
    print(f'model     {output}', flush=True)
    return
  if folder is not None and (stored := ensemble.read(folder)).is_ensemble:
    raise InputError(
      f'{folder}: an ensemble of {counted(len(stored.members), "model")}; '
      f'--format={form} writes a single network: name a member'
      + f', --model={stored.first.where}' * folder.is_dir()
      + f' of the unpacked zip, {stored.first.at}' * (not folder.is_dir())
    )
  cascade.refuse(config, f'{folder or workdir}, --format={form}')
  text = output.with_name(f'{output.name}.txt')
  for path in (output, text):
    if path.exists():
      raise InputError(
        f'{path}: is there already and is not overwritten; name another '
        '--output'
      )
  variables, step, which = trained_model.load_variables(
    config, workdir, model=model, checkpoint=checkpoint
  )
  # On whatever machine the program will run, it must hold nothing of this one.
  network = build.model_of(config, sharding.local_mesh(), convolutions='xla')
  predict_fn = trained_model.predict_fn_of(config, network)
  tile = build.tile_shape(config)
  if form == 'onnx':
    program = exporting.to_onnx(predict_fn, variables, tile)
    tiles = 'any number of tiles'
  else:
    count = config.inference.batch_size or config.batch_size
    program = exporting.to_stablehlo(
      predict_fn, variables, tile, batch_size=count
    )
    tiles = counted(count, 'tile')
  write_atomically(output, program)
  write_atomically(
    text, _how_to_call(config, output.name, form, tiles, tile).encode()
  )
  print(f'program   {output} ({which} weights, step {step})')
  print(f'usage     {text}', flush=True)


def _how_to_call(config, name, form, tiles, tile) -> str:
  """Returns the text beside a program, with its own numbers."""
  outputs = config.data.classes
  if config.data.regions:
    outputs = [region for region, _ in config.data.regions]
  facts = (
    f'{name}: {tiles} of {" x ".join(map(str, tile[:-1]))} voxels and '
    f'{counted(tile[-1], "channel")}; outputs: {", ".join(outputs)}.\n\n'
  )
  return facts + exporting.HOW_TO_CALL.replace(f'network.{form}', name)
