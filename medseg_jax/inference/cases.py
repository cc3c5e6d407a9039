"""From cases to masks on their own grid, for evaluation and prediction."""

import concurrent.futures
import contextlib
import functools
import itertools
from collections.abc import (
  Callable,
  Generator,
  Iterable,
  Iterator,
  Sequence,
)
from typing import Any, NamedTuple, NotRequired, TypedDict, TypeVar, Unpack

import jax
import numpy as np

from medseg_jax import inference
from medseg_jax.data import previous_stage
from medseg_jax.data.case import Case
from medseg_jax.data.precision import compact
from medseg_jax.data.preprocess import Preprocessing, preprocess
from medseg_jax.inference import in_step
from medseg_jax.inference.decoding import argmax
from medseg_jax.inference.own_grid import (
  DrawPoints,
  Output,
  Prediction,
  on_own_grid,
  only_measured,
)
from medseg_jax.runtime import stop_signal
from medseg_jax.runtime.errors import InputError, counted

# While an image of more values is predicted, the next case is not read yet:
# two such would need too much memory.
LARGE_IMAGE = 2**27

Item = TypeVar('Item')  # whatever a case is read from
# Of a cascade, the mask of the coarser network: takes a case, with all channels
# of the image and without a label, and the shape of what the network sees of
# it; returns class indices of that shape.
Previous = Callable[[Case, tuple[int, ...]], np.ndarray]


class Network(NamedTuple):
  """One of several networks that see the same cases, each on its own grid.

  Attributes:
    predict_fn: see `predict_cases`.
    preprocessing: with the axes and the crop of the others.
    patch_size: of the tiles.
    overlap: of neighbouring tiles.
    batch_size: tiles at once.
    previous: where it is the second of a cascade: what its images get as their
      last channel.
  """

  predict_fn: Callable[[jax.Array], jax.Array]
  preprocessing: Preprocessing
  patch_size: tuple[int, ...]
  overlap: float
  batch_size: int
  previous: Previous | None = None


class Settings(TypedDict):
  """How cases are predicted; see `inference.sliding_window` for three of them.

  Attributes:
    preprocessing: as in training.
    channels: of the training images; a grey image is repeated to as many.
    patch_size: of the tiles.
    overlap: of neighbouring tiles.
    batch_size: tiles at once.
    previous: see `Network`; there is none.
    decode: logits `[..., K]` to class indices `[...]`, both NumPy; argmax.
    probabilities: whether they are kept, too; they are not.
    activate: logits `[..., K]` to probabilities, all 0 outside the crop. None
      for exclusive classes: softmax, and 1 for class 0 outside.
    has_background: with `activate`, whether class 0 is the background, and 1
      outside the crop; it is not.
    temperature: what logits are divided by before they become probabilities,
      one for all or one for each; 1, see `calibration`.
    points: of a case and the box of it that the network sees, the voxels whose
      logits are kept, int `[n, R]` indices inside the box; none are.
    uncertainty: whether the entropy of the probabilities is kept; it is not.
    disagreement: whether that of the members is, where every `predict_fn` gives
      the normaliser that it takes (`network.create_predict`); it is not.
    also: further networks of the same classes or regions; none. What is
      decoded are the means of their probabilities on the case's own grid:
      softmax, or with `activate` sigmoid.
    finish: class indices `[*S]` of a whole case to those that it gets; as they
      are. Probabilities stay those of the network.
    watch: takes the share of a case of many tiles that is done, now and then.
  """

  preprocessing: Preprocessing
  channels: int
  patch_size: tuple[int, ...]
  overlap: float
  batch_size: int
  previous: NotRequired[Previous | None]
  decode: NotRequired[Callable[[np.ndarray], np.ndarray]]
  probabilities: NotRequired[bool]
  activate: NotRequired[Callable[[np.ndarray], np.ndarray] | None]
  has_background: NotRequired[bool]
  temperature: NotRequired[Sequence[float]]
  points: NotRequired[DrawPoints | None]
  uncertainty: NotRequired[bool]
  disagreement: NotRequired[bool]
  also: NotRequired[Sequence[Network]]
  finish: NotRequired[Callable[[np.ndarray], np.ndarray]]
  watch: NotRequired[Callable[[float], None]]


def predict_cases(
  predict_fn: Callable[[jax.Array], jax.Array],
  cases: Iterable[Case],
  **settings: Unpack[Settings],
) -> Iterator[Prediction]:
  """Yields each case's prediction, in order.

  Images larger than a tile are tiled, smaller ones filled up with 0 like the
  patches of training; tiles of several small cases share a batch. Where the
  preprocessing changed the grid, the logits are brought back linearly before
  they are decoded, slab by slab: they never exist as a whole. What the
  preprocessing cropped away is background.

  The next case is read and preprocessed by another thread meanwhile, unless it
  would need too much memory.

  Args:
    predict_fn: see `inference.sliding_window`.
    cases: read one after the other.
    **settings: see `Settings`.

  Raises:
    InputError: a case does not suit the preprocessing or the network.
  """
  predicted = _predict(predict_fn, cases, lambda case: case, None, **settings)
  for case, prediction in predicted:
    yield prediction
    del case, prediction  # before the next one is waited for


def predict_each(
  predict_fn: Callable[[jax.Array], jax.Array],
  items: Iterable[Item],
  *,
  read: Callable[[Item], Case],
  failed: Callable[[Item, Exception], None],
  **settings: Unpack[Settings],
) -> Iterator[tuple[Item, Prediction]]:
  """Yields `(item, prediction)`; an item that fails costs none of the others.

  Where the network fails on a batch, as it may run out of memory, those that
  were under way are read again and predicted one by one, to tell which it is.

  Args:
    predict_fn: see `predict_cases`.
    items: in what order to predict.
    read: returns the case of an item. Called from another thread.
    failed: takes an item that cannot be read, prepared or predicted, and why;
      likewise. It should not keep the error, which holds on to the image.
    **settings: see `Settings`.
  """
  items = iter(items)
  under_way: list[Item] = []

  def enter(items: Iterable[Item]) -> Iterator[Item]:
    for item in items:
      under_way.append(item)
      yield item

  def give_up(item: Item, error: Exception) -> None:
    under_way.remove(item)
    failed(item, error)

  def predict(items: Iterable[Item]) -> Iterator[tuple[Item, Prediction]]:
    try:
      for item, prediction in _predict(
        predict_fn, enter(items), read, give_up, **settings
      ):
        under_way.remove(item)
        yield item, prediction
        del prediction
    except Exception as error:
      if not under_way:
        raise  # no case is to blame
      if len(under_way) == 1:
        give_up(under_way[0], error)

  while True:
    yield from predict(items)
    # The error is gone by now, and with it the arrays that it was met with.
    suspects, under_way[:] = list(under_way), []
    for item in suspects:
      yield from predict([item])
    if (following := next(items, None)) is None:
      return
    items = itertools.chain([following], items)


def _predict(
  predict_fn: Callable[[jax.Array], jax.Array],
  items: Iterable[Item],
  read: Callable[[Item], Case],
  failed: Callable[[Item, Exception], None] | None,
  *,
  preprocessing: Preprocessing,
  channels: int,
  patch_size: tuple[int, ...],
  overlap: float,
  batch_size: int,
  previous: Previous | None = None,
  decode: Callable[[np.ndarray], np.ndarray] = argmax,
  probabilities: bool = False,
  activate: Callable[[np.ndarray], np.ndarray] | None = None,
  has_background: bool = False,
  temperature: Sequence[float] = (),
  points: DrawPoints | None = None,
  uncertainty: bool = False,
  disagreement: bool = False,
  also: Sequence[Network] = (),
  finish: Callable[[np.ndarray], np.ndarray] | None = None,
  watch: Callable[[float], None] | None = None,
) -> Iterator[tuple[Item, Prediction]]:
  first = Network(
    predict_fn, preprocessing, patch_size, overlap, batch_size, previous
  )
  networks = (first, *also)
  output = Output(
    axes=preprocessing.axes,
    decode=decode,
    probabilities=probabilities,
    activate=activate,
    has_background=has_background or activate is None,
    temperature=tuple(temperature),
    points=points,
    uncertainty=uncertainty,
    disagreement=disagreement,
  )
  wanted = [(n.preprocessing, n.previous) for n in networks]
  entered = _entered(items, read, failed, wanted, channels)
  shares = [0.0] * len(networks)

  def watch_one(i: int, share: float) -> None:
    shares[i] = share
    if watch is not None:
      watch(sum(shares) / len(shares))

  # Closed by its end at the latest: it waits for the thread that reads ahead.
  with contextlib.closing(entered):
    streams = [
      inference.stream_slabs(
        network.predict_fn,
        images,
        network.patch_size,
        overlap=network.overlap,
        batch_size=network.batch_size,
        watch=functools.partial(watch_one, i),
      )
      for i, (network, images) in enumerate(
        zip(networks, in_step.deal(entered, len(networks)), strict=True)
      )
    ]
    for case, slabs in in_step.by_case(streams):
      prediction = on_own_grid(
        [map(np.asarray, of_one) for of_one in slabs],
        case.case,
        box=case.box,
        sizes=case.sizes,
        output=output,
      )
      if finish is not None:
        prediction = prediction._replace(label=finish(prediction.label))
      prediction = only_measured(
        prediction, has_background=output.has_background
      )
      shares[:] = [0.0] * len(networks)
      yield case.item, prediction
      del case, slabs, prediction  # before the next image is waited for


def match_channels(case: Case, channels: int) -> Case:
  """Returns the case with as many channels as the model takes.

  Raises:
    InputError: it has another number, and is not grey.
  """
  found = case.image.shape[-1]
  if found == 1 < channels:
    return case._replace(image=np.repeat(case.image, channels, -1))
  if found != channels:
    grey = ', or grey ones' if channels > 1 else ''
    raise InputError(
      f'{case.name} has {counted(found, "channel")}; allowed are images '
      f'with {channels}, as in training{grey}'
    )
  return case


class _Entered(NamedTuple):
  """A case whose image is with the network, or the networks."""

  item: Any
  case: Case
  box: tuple[slice, ...]
  sizes: tuple[tuple[int, ...], ...]  # of the image that each network sees


def _entered(
  items: Iterable[Item],
  read: Callable[[Item], Case],
  failed: Callable[[Item, Exception], None] | None,
  wanted: list[tuple[Preprocessing, Previous | None]],
  channels: int,
) -> Generator[tuple[_Entered, list[np.ndarray]] | None, None, None]:
  """Yields each case with its image for each network, read one ahead.

  Those that fail are told to `failed`, where that is given, and left out.
  `wanted` has what each network wants of a case. Several networks are asked, by
  None, to finish a large case first.
  """
  items = iter(items)
  if len({(p.axes, p.crop) for p, _ in wanted}) > 1:
    raise ValueError('networks of one case want other axes, or another crop')

  def prepare() -> tuple[_Entered, list[np.ndarray]] | None:
    for item in items:
      try:
        return enter(item)
      except Exception as error:
        if failed is None:
          raise
        failed(item, error)
    return None

  def enter(item: Item) -> tuple[_Entered, list[np.ndarray]]:
    case = read(item)
    # The label stays on its own grid, so resampling it would be in vain.
    bare = match_channels(case, channels)._replace(label=None)
    images: list[np.ndarray] = []
    for i, (preprocessing, previous) in enumerate(wanted):
      same = wanted.index((preprocessing, previous))
      if same < i:
        images.append(images[same])
        continue
      prepared = preprocess(bare, preprocessing)
      image = compact(prepared.image, prepared.slack)  # as in training
      box = prepared.box
      del prepared
      if previous is not None:
        mask = previous(bare, image.shape[:-1])
        image = previous_stage.with_mask(image, mask)
      images.append(image)
    sizes = tuple(image.shape[:-1] for image in images)
    return _Entered(item, case, box, sizes), images

  pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
  try:
    ahead = pool.submit(prepare)
    while (result := _result(ahead)) is not None:
      large = any(image.size > LARGE_IMAGE for image in result[1])
      if not large:
        ahead = pool.submit(prepare)
      held = [result]
      del result
      yield held.pop()  # the image is not to be held here, too
      if large:
        if len(wanted) > 1:
          yield None
        ahead = pool.submit(prepare)
  finally:
    # Whoever asked for the end may not wait for a scan that takes long; a
    # process that is alone waits for it when it exits.
    pool.shutdown(wait=not stop_signal.asked(), cancel_futures=True)


def _result(future: concurrent.futures.Future[Item]) -> Item:
  return next(stop_signal.as_completed([future])).result()
