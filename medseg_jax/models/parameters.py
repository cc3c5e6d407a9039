"""Which parameters of a network depend on its data: the first and the last.

A parameter's name is its path, `encoder_0/conv_0/kernel`.
"""

import re
from collections.abc import Iterable

_HEAD = re.compile(r'head(_\d+)?/(kernel|bias)')
# Of the networks that there are, what their images meet first; the stem, where
# there is one, takes the place of the encoder's first stage.
_FIRST = (
  ('stem/conv_0/kernel',),
  ('encoder_0/conv_0/kernel', 'encoder_0/conv_shortcut/kernel'),
  ('conv_0/kernel',),
)


def is_head(name: str) -> bool:
  """Returns whether the last axis of a parameter is that of the logits.

  So it is of every segmentation layer, those of deep supervision among them.
  """
  return _HEAD.fullmatch(name) is not None


def input_kernels(names: Iterable[str]) -> tuple[str, ...]:
  """Returns which parameters have the image's channels as last axis but one.

  Args:
    names: of all parameters of a network.
  """
  known = set(names)
  for candidates in _FIRST:
    if candidates[0] in known:
      return tuple(name for name in candidates if name in known)
  return ()
