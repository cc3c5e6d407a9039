"""The anatomy of an abdominal CT phantom, painted from a seed.

An example is one seeded draw of anatomy (body, spine, ribs, liver, kidneys,
tumours, and look-alikes without a label: spleen, stomach, bowel, vessels, gall
bladder), made of ellipsoids with irregular outlines. Each is painted with its
partial volume at the edge, then come a smooth bias field and correlated noise.

Everything is measured in millimetres about the centre of the field of view,
axes in the order (z, y, x): x to the patient's left, y to the back. A shape of
fewer axes keeps the last ones, with every organ cut through its own centre: two
axes are an axial slice, one is a line across the body.
"""

import math
from itertools import product
from typing import NamedTuple

import numpy as np

from medseg_jax.runtime.errors import InputError

VERSION = 1  # Raise it whenever generate() gives different numbers.
CLASSES = ('background', 'liver', 'kidney', 'tumour')
LIVER, KIDNEY, TUMOUR = 1, 2, 3
FIELD_OF_VIEW = (240.0, 360.0, 360.0)  # mm along (z, y, x)

# cos(n t) from c = cos(t), for n = 2, 3, 4.
_WAVES = (
  lambda c: 2 * c * c - 1,
  lambda c: c * (4 * c * c - 3),
  lambda c: 8 * c * c * (c * c - 1) + 1,
)
_THROUGHOUT = 1e3  # mm, the z radius of what runs through the whole body


class _Scene(NamedTuple):
  """One patient: what is painted on, and what the organs have in common."""

  rng: np.random.Generator
  image: np.ndarray  # [*S] HU, painted in place
  label: np.ndarray  # [*S], painted in place
  cavity: np.ndarray  # [*S] share of each voxel that is inside the belly
  shift: np.ndarray  # [3] mm, of the patient in the field of view
  turn: float  # radians, of the patient in the axial plane
  belly: np.ndarray  # [3] mm, radii inside the fat under the skin
  fat: float  # HU
  contrast: float  # 0 to 1, contrast agent: raises whatever has much blood


def spacing_of(shape: tuple[int, ...]) -> tuple[float, ...]:
  """Returns the voxel size in mm of a phantom of this shape.

  Raises:
    InputError: unless the shape has one to three axes, each >= 4.
  """
  if not 1 <= len(shape) <= 3 or min(shape) < 4:
    raise InputError(
      f'phantom shape is {shape}; allowed are 1 to 3 axes of at least 4'
    )
  fields = FIELD_OF_VIEW[3 - len(shape) :]
  return tuple(fov / n for fov, n in zip(fields, shape, strict=True))


def generate(seed, index, shape) -> tuple[np.ndarray, np.ndarray]:
  """Returns image `[*shape, 1]` float32 in HU and label `[*shape]` uint8.

  A pure function of its arguments. At every size of one rank, (seed, index) is
  the same patient, only finer or coarser.

  Args:
    seed: int >= 0, names the data set.
    index: int >= 0, names the example.
    shape: tuple of one to three ints >= 4, the last axes of (z, y, x).

  Raises:
    ValueError: where one of them is outside its range.
  """
  bits = np.random.Philox(np.random.SeedSequence((seed, index)))
  rng = np.random.Generator(bits)
  image, label = _paint_patient(rng, shape)
  # Relative to air, as a detector's gain would be: air stays at -1000 HU.
  image += (image + 1000.0) * _bias_field(rng, shape)
  image += np.float32(rng.uniform(8, 13)) * _correlated_noise(rng, shape)
  return np.maximum(image, -1024.0)[..., None], label


def _paint_patient(rng, shape) -> tuple[np.ndarray, np.ndarray]:
  """Returns image `[*shape]` without noise, and label: the skin first."""
  uniform = rng.uniform
  body_x = uniform(138, 168)
  body = np.array([_THROUGHOUT, body_x * uniform(0.7, 0.85), body_x])
  scene = _Scene(
    rng=rng,
    image=np.full(shape, -1000.0, np.float32),
    label=np.zeros(shape, np.uint8),
    cavity=np.zeros(shape, np.float32),
    shift=uniform(-14, 14, 3),
    turn=uniform(-0.15, 0.15),
    belly=body - uniform(8, 26),
    fat=uniform(-115, -90),
    contrast=uniform(0, 1),
  )
  ay, ax = scene.belly[1:]
  _organ(scene, (0, 0, 0), body, scene.fat, waves=0.03)
  _organ(scene, (0, 0, 0), scene.belly, uniform(45, 65), waves=0.02)
  center, radii = (0, -0.13 * ay, 0), (_THROUGHOUT, 0.79 * ay, ax - 11)
  box, share = _organ(scene, center, radii, scene.fat, waves=0.02)
  scene.cavity[box] = share
  _paint_bones(scene)
  for _ in range(8 if len(shape) < 3 else 45):
    _paint_bowel(scene)
  _paint_look_alikes(scene)
  _paint_liver(scene)
  for side in (-1, 1):
    if uniform() < 0.95:
      _paint_kidney(scene, side)
  return scene.image, scene.label


def _paint_bones(scene: _Scene) -> None:
  """Paints ribs in the wall of the belly, a vertebra and the psoas muscles."""
  uniform = scene.rng.uniform
  ay, ax = scene.belly[1:]
  heights = [0.0] if scene.image.ndim < 3 else [-90.0, -30.0, 30.0, 90.0]
  for side, place, height in product((-1, 1), (-0.35, 0.15, 0.65), heights):
    t = place + uniform(-0.12, 0.12)
    center = (height, 0.97 * ay * np.sin(t) - 3, side * (ax - 6) * np.cos(t))
    radii = (18, uniform(8, 14), uniform(3, 5))
    _organ(scene, center, radii, uniform(400, 600), angle=-0.8 * side * t)
  bone = uniform(450, 650)
  y = 0.48 * ay
  ry, rx = uniform(15, 18), uniform(20, 25)
  for center_y, radii, value in (
    (y + 25, (5, uniform(30, 40)), bone),  # transverse processes
    (y + 38, (uniform(14, 20), 4.5), bone),  # spinous process
    (y + 25, (14, 16), bone),  # arch
    (y + 25, (8, 10), 30.0),  # canal
    (y, (ry, rx), bone),  # body: its shell, then the spongy inside
    (y, (ry - 4, rx - 4), uniform(180, 300)),
  ):
    _organ(scene, (0, center_y, 0), (_THROUGHOUT, *radii), value)
  for side in (-1, 1):
    radii = (_THROUGHOUT, uniform(13, 18), uniform(9, 13))
    center = (0, y + 6, side * uniform(34, 38))
    _organ(scene, center, radii, uniform(48, 65), waves=0.05)


def _paint_bowel(scene: _Scene) -> None:
  """Paints one loop of bowel: empty, with contrast agent, or with gas."""
  uniform = scene.rng.uniform
  y, x = scene.belly[1:] * uniform((-0.75, -0.2), (0.2, 0.75))
  z, ry, rx, angle = uniform((-115, 9, 11, -1.5), (115, 17, 24, 1.5))
  filling = scene.rng.choice(3, p=(0.55, 0.3, 0.15))
  value = uniform(110, 190) if filling == 1 else uniform(25, 65)
  radii = (uniform(12, 25), ry, rx)
  _organ(scene, (z, y, x), radii, value, None, angle, waves=0.08, inside=True)
  if filling == 2:
    radii = (10, 0.5 * ry, 0.6 * rx)
    _organ(scene, (z, y - 3, x), radii, -800.0, None, angle, inside=True)


def _paint_look_alikes(scene: _Scene) -> None:
  """Paints stomach, spleen, aorta and vena cava: no threshold finds a class."""
  uniform = scene.rng.uniform
  ay, ax = scene.belly[1:]
  center = (uniform(0, 60), uniform(-0.5, -0.35) * ay, uniform(0.3, 0.45) * ax)
  radii = (uniform(40, 60), uniform(20, 32), uniform(30, 46))
  value, angle = uniform(10, 60), uniform(-0.5, 0.5)
  _organ(scene, center, radii, value, None, angle, waves=0.08, inside=True)
  center = (uniform(10, 40), uniform(-0.15, 0.1) * ay, uniform(0.7, 0.8) * ax)
  radii = (uniform(42, 58), uniform(32, 48), uniform(20, 32))
  value, angle = uniform(60, 80) + 55 * scene.contrast, uniform(-0.4, 0.2)
  _organ(scene, center, radii, value, None, angle, waves=0.06, inside=True)
  blood, radius = uniform(100, 140) + 60 * scene.contrast, uniform(9, 13)
  front = 0.48 * ay - 32  # before the vertebra
  radii = (_THROUGHOUT, radius, radius)
  _organ(scene, (0, front, uniform(4, 14)), radii, blood)
  radii = (_THROUGHOUT, 0.7 * radius, radius)
  _organ(scene, (0, front, uniform(-24, -14)), radii, blood - uniform(0, 40))


def _paint_liver(scene: _Scene) -> None:
  """Paints the liver's two lobes, its vessels, gall bladder and tumours."""
  uniform, rank = scene.rng.uniform, scene.image.ndim
  ay, ax = scene.belly[1:]
  value = uniform(55, 70) + 40 * scene.contrast
  y, x = uniform(-0.2, -0.08) * ay, uniform(-0.6, -0.5) * ax
  center = np.array([uniform(10, 30), y, x])
  ry, rx = uniform(0.56, 0.7) * ay, uniform(0.44, 0.54) * ax
  radii = np.array([uniform(62, 80), ry, rx])
  angle, tilt = uniform(-0.4, 0.4), uniform(-0.3, 0.3)
  lobe = {'waves': 0.06, 'inside': True}
  _organ(scene, center, radii, value, LIVER, angle, tilt, **lobe)
  left = (center[0] + 10, uniform(-0.55, -0.4) * ay, uniform(-0.2, 0.0) * ax)
  size = (45, uniform(0.2, 0.3) * ay, uniform(0.25, 0.45) * ax)
  _organ(scene, left, size, value, LIVER, uniform(-0.2, 0.3), **lobe)
  for _ in range(5 if rank < 3 else 10):
    vessel = center + 0.7 * radii * _in_ball(scene.rng)
    size, angle = (12, uniform(2.5, 4.5), uniform(7, 18)), uniform(-1.5, 1.5)
    blood = value + uniform(20, 45)
    _organ(scene, vessel, size, blood, None, angle, inside=True)
  if uniform() < 0.5:
    bladder = center + (-40, 0.25 * ay, 0.48 * ax)
    size, angle = (20, uniform(9, 13), uniform(12, 18)), uniform(-0.8, 0.8)
    _organ(scene, bladder, size, uniform(-5, 12), 0, angle, **lobe)
  if uniform() < 0.62:
    for _ in range(scene.rng.integers(1, 3 if rank < 3 else 4)):
      # Towards the front: the right kidney lies over the back of the liver.
      middle = center + 0.5 * radii * _in_ball(scene.rng) - (0, 0.15 * ay, 0)
      _paint_tumour(scene, middle, uniform(15, 25), value - uniform(35, 60))


def _paint_kidney(scene: _Scene, side: int) -> None:
  """Paints one kidney in its fat, the sinus on its inner side, and a tumour."""
  uniform = scene.rng.uniform
  value = uniform(120, 140) + 40 * scene.contrast
  y, x = uniform(0.22, 0.34) * scene.belly[1], side * uniform(70, 82)
  center = np.array([uniform(-35, -5), y, x])
  radii = np.array([uniform(46, 58), uniform(28, 35), uniform(23, 29)])
  angle, tilt = side * uniform(-0.6, 0.1), side * uniform(-0.2, 0.2)
  capsule = radii + uniform(4, 9)
  _organ(scene, center, capsule, scene.fat, 0, angle, tilt, waves=0.03)
  _organ(scene, center, radii, value, KIDNEY, angle, tilt, waves=0.04)
  hilum = center - side * 0.85 * radii[2] * _rotation(angle, 0.0)[:, 2]
  sinus = (20, uniform(6, 10), uniform(9, 14))
  _organ(scene, hilum, sinus, scene.fat + uniform(0, 30), 0, angle, waves=0.1)
  if uniform() < 0.38:
    middle = center + 0.55 * radii * _in_ball(scene.rng)
    _paint_tumour(scene, middle, uniform(15, 21), value - uniform(40, 65))


def _paint_tumour(scene: _Scene, center, radius: float, value: float) -> None:
  """Paints an irregular ball; no radius is under 4 % of the field of view."""
  radii = np.maximum(radius * scene.rng.uniform(0.85, 1.2, 3), 14.4)
  angle = scene.rng.uniform(-1.5, 1.5)
  _organ(scene, center, radii, value, TUMOUR, angle, waves=0.06)


def _in_ball(rng: np.random.Generator) -> np.ndarray:
  """Returns a point `[3]` of the unit ball, evenly by direction and radius."""
  direction = rng.normal(size=3)
  return direction * rng.uniform() / np.linalg.norm(direction)


def _organ(
  scene: _Scene,
  center,
  radii,
  value: float,
  index: int | None = None,
  angle: float = 0.0,
  tilt: float = 0.0,
  *,
  waves: float = 0.0,
  inside: bool = False,
) -> tuple[tuple[slice, ...], np.ndarray]:
  """Paints an ellipsoid and returns its box and shares (see `_ellipsoid`).

  `index` is its class, None leaves the label as it is; `inside` cuts it off at
  the wall of the belly.
  """
  box, share = _ellipsoid(scene, center, radii, angle, tilt, waves)
  if inside:
    share = np.minimum(share, scene.cavity[box])
  region = scene.image[box]
  region += share * (np.float32(value) - region)
  if index is not None:
    scene.label[box][share >= 0.5] = index
  return box, share


def _ellipsoid(
  scene: _Scene, center, radii, angle: float, tilt: float, waves: float
) -> tuple[tuple[slice, ...], np.ndarray]:
  """Returns a box and the share of each of its voxels that the ellipsoid fills.

  With u the coordinates in which it is a unit ball, its surface is |u| = h, and
  to first order |u| (h - |u|) / |u / radii| is the distance to it. The outline
  h is 1, or with waves 1 + a sum of size * cos(n t), n = 2, 3, 4, where t is
  the angle to a random axis.

  `center` and `radii` are `[3]` mm in the patient's coordinates, `angle` (in
  the axial plane) and `tilt` (of z to x) radians, `waves` the largest size.
  """
  shape = scene.image.shape
  rank, spacing = len(shape), spacing_of(shape)
  voxel = sum(spacing) / rank
  radii = np.asarray(radii, float)
  rotation = _rotation(scene.turn + angle, tilt)
  center = _rotation(scene.turn, 0.0) @ np.asarray(center) + scene.shift
  reach = np.sqrt(np.sum((rotation * radii) ** 2, axis=1))
  reach = reach * (1.0 + 2.6 * waves) + voxel

  box, offsets = [], []
  for axis, (n, mm) in enumerate(zip(shape, spacing, strict=True)):
    k = 3 - rank + axis
    middle, half = center[k] / mm + (n - 1) / 2, reach[k] / mm
    start = max(0, math.ceil(middle - half))
    stop = max(start, min(n, math.floor(middle + half) + 1))
    box.append(slice(start, stop))
    offset = ((np.arange(start, stop) - middle) * mm).astype(np.float32)
    offsets.append(offset.reshape((-1,) + (1,) * (rank - 1 - axis)))

  u = {}
  for j, weights in enumerate((rotation / radii).T[:, 3 - rank :]):
    pairs = zip(weights, offsets, strict=True)
    terms = [np.float32(w) * offset for w, offset in pairs if w]
    if terms:  # in a slice, an axis that points out of it adds nothing
      u[j] = sum(terms[1:], terms[0])
  square = slope = np.float32(1e-12)  # no division by zero at the centre
  for j, u_j in u.items():
    term = u_j * u_j
    square = square + term
    slope = slope + np.float32(radii[j] ** -2) * term
  length = np.sqrt(square)
  outline = np.float32(1.0)
  if waves:
    axes = scene.rng.normal(size=(3, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    sizes = waves * scene.rng.uniform(0.4, 1.0, 3) * (1.0, 1.0, 0.6)
    for axis, wave, size in zip(axes, _WAVES, sizes, strict=True):
      cosine = sum(np.float32(axis[j]) * u[j] for j in u) / length
      outline = outline + np.float32(size) * wave(cosine)
  distance = length * (outline - length) / np.sqrt(slope)
  return tuple(box), np.clip(distance / np.float32(voxel) + 0.5, 0, 1)


def _rotation(angle: float, tilt: float) -> np.ndarray:
  """Returns `[3, 3]`: a tilt out of the axial plane, then a turn within it."""
  c, s = np.cos(angle), np.sin(angle)
  turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
  c, s = np.cos(tilt), np.sin(tilt)
  return turn @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])


def _correlated_noise(rng, shape) -> np.ndarray:
  """Returns noise `[*shape]` of variance 1, neighbours correlated by 4/9."""
  noise = rng.standard_normal([n + 2 for n in shape], dtype=np.float32)
  for _ in shape:  # smooths the first axis and makes it the last
    noise = noise[:-2] + 4 * noise[1:-1] + noise[2:]
    noise = np.moveaxis(noise, 0, -1)
  # The squares of the weights (1, 4, 1) sum to 18.
  return noise / np.float32(18 ** (len(shape) / 2))


def _bias_field(rng, shape) -> np.ndarray:
  """Returns a smooth relative gain `[*shape]`, within about +-2 %."""
  field = np.float32(0.0)
  slope, bend = rng.uniform(-0.01, 0.01, (2, 3))[:, 3 - len(shape) :]
  for axis, n in enumerate(shape):
    x = np.linspace(-1, 1, n)
    line = (slope[axis] * x + bend[axis] * (x * x - 0.5)).astype(np.float32)
    field = field + line.reshape((-1,) + (1,) * (len(shape) - 1 - axis))
  return field
