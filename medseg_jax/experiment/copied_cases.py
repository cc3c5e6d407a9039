"""Cases that are the same image under several names, told."""

from collections.abc import Mapping

import numpy as np

from medseg_jax.data.case import Source
from medseg_jax.data.groups import some
from medseg_jax.data.identity import copies
from medseg_jax.experiment.case_digests import Digests
from medseg_jax.runtime.errors import counted


def tell(
  opened: Mapping[str, Source], digests: Digests, so_what: str = ''
) -> None:
  """Prints which cases are the same image, and where their masks differ.

  Args:
    opened: the cases by split.
    digests: of all of these cases.
    so_what: what becomes of them, for the end of the line.
  """
  places = {  # by what names a case
    f'{split}/{name}' if len(opened) > 1 else name: (source, i, split, name)
    for split, source in sorted(opened.items())
    for i, name in enumerate(source.names)
  }
  keys = [digests[split][name] for _, _, split, name in places.values()]
  pairs, differ = [], []
  for first, *others in copies(list(places), keys).values():
    for other in others:
      pairs.append(f'{first} = {other}')
      labels = [
        source[i].label for source, i, *_ in (places[first], places[other])
      ]
      if not np.array_equal(*labels):
        differ.append(pairs[-1])
  if not pairs:
    return
  print(
    f'warning   {counted(len(pairs), "case")} with the image of another '
    f'({some(pairs)}){so_what}'
  )
  if differ:
    print(
      f'warning   with other masks for the same image: {some(differ)} '
      f'({len(differ)} in all); one of the two is wrong'
    )


def scored_twice(
  names: tuple[str, ...], digests: Mapping[str, str], what: str
) -> list[list[str]]:
  """Returns the names of each image that several of the cases are.

  Each case is scored all the same, since their masks may differ; so the image
  counts as often as it is there, which is printed.

  Args:
    names: of the cases that are scored.
    digests: of each of these, by name.
    what: what the cases are, for the line: 'val', say.
  """
  found = list(copies(names, [digests[name] for name in names]).values())
  if found:
    cases = sum(map(len, found))
    print(
      f'warning   {what}: {cases} of the {counted(len(names), "case")} are '
      f'only {counted(len(found), "image")} '
      f'({some(" = ".join(names) for names in found)}); each case is scored, '
      'and counts'
    )
  return found
