"""The weak-scaling tables of benchmarks/scaling.md, from files `compile.json`.

  python benchmarks/scaling.py runs/h100/compile.json runs/v5e/compile.json ...

One table a file: the step on 8, 64, 256 and 1024 chips, with as much work for
each chip as in the program that was compiled. The formula and what it assumes
stand in benchmarks/scaling.md.
"""

import argparse
import json
import math
import pathlib
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from medseg_jax.hardware import roofline
from medseg_jax.hardware.chips import CHIPS, Chip

# Seconds before a collective moves anything. GPUs: NCCL's own model of its
# trees (src/graph/tuning.cc, LL): to begin with, each step in a host, each step
# between hosts. TPUs: a hop to a neighbour takes about a microsecond ("How to
# Scale Your Model", 2025); between slices: assumed, nothing is published.
GPU_START, GPU_STEP, GPU_NETWORK_STEP = 4.4e-6, 0.52e-6, 5.0e-6
TPU_HOP, TPU_NETWORK_STEP = 1e-6, 50e-6


class Layout(NamedTuple):
  """How chips are connected.

  Attributes:
    name: for people.
    linked: chips with links of their own among them.
    torus: its sizes; () of GPUs.
    wraps: whether each of its axes is a ring.
  """

  name: str
  linked: int
  torus: tuple[int, ...] = ()
  wraps: bool = True


# By kind and number of chips. A v5e has 256 chips at the most, rings where an
# axis has 16; a v5p has rings where an axis is a multiple of four.
LAYOUTS = {
  'h100': {
    8: Layout('1 host', 8),
    64: Layout('8 hosts', 8),
    256: Layout('32 hosts', 8),
    1024: Layout('128 hosts', 8),
  },
  'v5e': {
    8: Layout('2x4', 8, (2, 4), wraps=False),
    64: Layout('8x8', 64, (8, 8), wraps=False),
    256: Layout('16x16', 256, (16, 16)),
    1024: Layout('4 slices of 16x16', 256, (16, 16)),
  },
  'v5p': {
    8: Layout('2x2x2', 8, (2, 2, 2), wraps=False),
    64: Layout('4x4x4', 64, (4, 4, 4)),
    256: Layout('4x8x8', 256, (4, 8, 8)),
    1024: Layout('8x8x16', 1024, (8, 8, 16)),
  },
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('files', nargs='+', type=pathlib.Path)
  for path in parser.parse_args().files:
    print('\n'.join(lines(json.loads(path.read_text()))), end='\n\n')


def lines(compiled: Mapping[str, Any]) -> Iterator[str]:
  """Yields the lines of a table in Markdown.

  Args:
    compiled: the content of a `compile.json`.
  """
  kind = compiled['topology'].partition(':')[0]
  spatial = compiled['mesh']['spatial']
  step = compiled['train_step']
  each = compiled['batch_size'] / compiled['num_devices']
  alone = 1e3 * kernel_seconds(compiled)
  sent = '; '.join(
    f'along {axes}: '
    + ', '.join(
      f'{row["count"]} {name} ({row["bytes"] / 2**20:.3g} MiB)'
      for name, row in found.items()
    )
    for axes, found in step['collectives_along'].items()
  )
  patches = 'patch' if each == 1 else 'patches'
  yield from textwrap.wrap(
    f'Compiled: `{compiled["topology"]}`, spatial {spatial}, jax '
    f'{compiled["jax_version"]}, {each:g} {patches} a chip; {sent}',
    width=80,
    break_on_hyphens=False,
  )
  yield ''
  yield (
    '| chips | connected as | kernels, ms (compiled) | gradient, ms (derived) '
    '| in an image, ms (derived) | step, ms | patches/s | of 1 chip a chip |'
  )
  yield '|---|---|---|---|---|---|---|---|'
  for chips, layout in LAYOUTS[kind].items():
    took = collective_seconds(compiled, chips)
    inside = 1e3 * took.pop('spatial', 0.0)
    gradient = 1e3 * sum(took.values())
    total = alone + inside + gradient
    yield (
      f'| {chips} | {layout.name} | {alone:.2f} | {gradient:.3f} '
      f'| {inside:.3f} | {total:.2f} | {1e3 * each * chips / total:,.0f} '
      f'| {alone / total:.1%} |'
    )


def kernel_seconds(compiled: Mapping[str, Any]) -> float:
  """Returns the least time of a step without its collectives."""
  step = compiled['train_step']
  return step['least_ms'] / 1e3 * (1 - step['least_share']['collectives'])


def collective_seconds(
  compiled: Mapping[str, Any], chips: int
) -> dict[str, float]:
  """Returns axes of the mesh -> seconds of a step's collectives along them.

  Args:
    compiled: the content of a `compile.json`. Under weak scaling what a chip
      sends stays the same.
    chips: in all.
  """
  kind = compiled['topology'].partition(':')[0]
  layout, spatial = LAYOUTS[kind][chips], compiled['mesh']['spatial']
  seconds = {}
  for axes, found in compiled['train_step']['collectives_along'].items():
    groups = 1 if axes == 'spatial' else chips // layout.linked
    linked = {
      'spatial': spatial,
      'data': layout.linked // spatial,
      'data, spatial': layout.linked,
    }[axes]
    chip = chip_between(CHIPS[kind], layout, axes)
    seconds[axes] = sum(
      roofline.group_seconds(
        name, row['bytes'], chip, linked=linked, groups=groups
      )
      + row['count'] * latency(name, layout, linked, groups)
      for name, row in found.items()
    )
  return seconds


def chip_between(chip: Chip, layout: Layout, axes: str) -> Chip:
  """Returns the chip with the part of its links that a collective can use."""
  if not layout.torus:
    return chip
  if axes == 'spatial':  # neighbours on a line
    return chip._replace(link=chip.link / (2 * chip.axes))
  return chip if layout.wraps else chip._replace(link=chip.link / 2)


def latency(name: str, layout: Layout, linked: int, groups: int) -> float:
  """Returns the seconds of a collective that moves next to nothing."""
  times = 2 if name == 'all-reduce' else 1
  between = math.ceil(math.log2(groups))
  if not layout.torus:
    if name == 'collective-permute':
      return GPU_START + GPU_STEP
    steps = (linked - 1) * GPU_STEP + between * GPU_NETWORK_STEP
    return GPU_START + times * steps
  if name == 'collective-permute':
    return TPU_HOP
  hops = linked - 1  # of a line
  if linked >= math.prod(layout.torus) // 4:
    hops = sum(layout.torus) // (2 if layout.wraps else 1)
  return times * (min(hops, linked - 1) * TPU_HOP + between * TPU_NETWORK_STEP)


if __name__ == '__main__':
  main()
