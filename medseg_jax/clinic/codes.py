"""What the classes of a model are called in DICOM, and in which colour."""

import colorsys
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medseg_jax.runtime.errors import InputError

# SNOMED CT, as DICOM writes it: (code, meaning).
STRUCTURE = ('123037004', 'Anatomical Structure')
ALTERED = ('49755003', 'Morphologically Altered Structure')
ORGAN, LESION = ('113343008', 'Organ'), ('52988006', 'Lesion')
_LESIONS = re.compile(
  r'lesion|tumou?r|cancer|metasta|nodule|edema|plaque|infarct|ha?emorrhage|'
  r'polyp|(?<![a-z])(core|cysts?|mass|masses|wmh)(?![a-z])',
  re.I,
)


class Meaning(NamedTuple):
  """What a class is.

  Attributes:
    name: the model's own.
    category: SNOMED CT code and meaning.
    kind: likewise.
    generic: whether the kind is a guess by the name alone.
    lesion: whether its components are measured one by one.
    colour: red, green, blue, 0..255.
  """

  name: str
  category: tuple[str, str]
  kind: tuple[str, str]
  generic: bool
  lesion: bool
  colour: tuple[int, int, int]


def meanings(
  classes: Sequence[str],
  table: Sequence[Sequence[str]] = (),
  lesions: Sequence[str] = (),
  others: Sequence[str] = (),
) -> tuple[Meaning, ...]:
  """Returns what each class is, the background, which is first, left out.

  Args:
    classes: of the model.
    table: (class, SNOMED CT code, meaning) of those that are known, as
      `config.clinic.codes` has them; the others are an organ or a lesion.
    lesions: the classes that are, as `config.clinic.lesions` has them; () for
      those whose names say so.
    others: names that the table and the lesions may have, too.

  Raises:
    InputError: the table is of another form, or of a class that there is not.
  """
  allowed = tuple(dict.fromkeys((*classes[1:], *others)))
  known: Mapping[str, tuple[str, str]] = {}
  for row in table:
    if len(row) != 3 or row[0] not in allowed:
      raise InputError(
        f'config.clinic.codes has {tuple(row)}; allowed are (class, SNOMED CT '
        f'code, meaning) of {", ".join(allowed)}'
      )
    known = {**known, row[0]: (str(row[1]), str(row[2]))}
  if unknown := [name for name in lesions if name not in allowed]:
    raise InputError(
      f'config.clinic.lesions has {unknown[0]!r}; allowed are '
      f'{", ".join(allowed)}'
    )
  found = []
  for i, name in enumerate(classes[1:]):
    lesion = name in lesions if lesions else bool(_LESIONS.search(name))
    kind = known.get(name, LESION if lesion else ORGAN)
    # As far apart as a circle of hues allows, whatever their number.
    rgb = colorsys.hsv_to_rgb((0.58 + 0.618034 * i) % 1, 0.65, 0.9)
    red, green, blue = (round(255 * x) for x in rgb)
    found.append(
      Meaning(
        name,
        ALTERED if lesion else STRUCTURE,
        kind,
        name not in known,
        lesion,
        (red, green, blue),
      )
    )
  return tuple(found)
