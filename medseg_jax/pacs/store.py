"""Sends objects by DICOM's own protocol: C-STORE (PS3.4, annex B)."""

import contextlib
import logging
import pathlib
import socket
from collections.abc import Collection, Iterator, Sequence

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
  UID,
  ExplicitVRLittleEndian,
  ImplicitVRLittleEndian,
)
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RJ

from medseg_jax.pacs.address import Node
from medseg_jax.pacs.answers import Answer, describe, is_kept
from medseg_jax.runtime.errors import InputError

_VERIFICATION = '1.2.840.10008.1.1'
# Uncompressed, each offered by itself: an object goes as it is written where
# the archive takes that, else it is written anew in the other.
_SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
# Seconds: until it can be reached, until it answers, until it has stored.
_CONNECT, _ANSWER, _STORE = 10, 30, 120
_SLOWEST = 1e6  # bytes that a line takes in a second


def probe(node: Node, classes: Collection[str]) -> None:
  """Makes sure that an archive is there and would take objects (C-ECHO).

  Args:
    node: the archive.
    classes: UIDs of the SOP classes of the objects.

  Raises:
    InputError: it is not there, does not talk to this program, or takes none of
      such a class.
  """
  asked = [_VERIFICATION, *classes]
  with _associated(node, asked, _ANSWER) as (association, taken):
    if refused := [uid for uid in classes if uid not in taken]:
      raise InputError(f'{node.name}: {_takes_no(refused)}')
    if _VERIFICATION in taken and not association.send_c_echo():
      raise InputError(
        f'{node.name}: is there, but gives no answer to an echo in {_ANSWER} s'
      )


def send(node: Node, paths: Sequence[pathlib.Path]) -> Iterator[Answer]:
  """Sends files, in one association, and yields what became of each.

  Args:
    node: the archive.
    paths: of DICOM objects without compression.
  """
  objects = [(path, pydicom.dcmread(path)) for path in paths]
  classes = dict.fromkeys(str(dataset.SOPClassUID) for _, dataset in objects)
  left = list(paths)
  try:
    with _associated(node, [*classes], _STORE) as (association, taken):
      for path, dataset in objects:
        answer = _store(association, path, dataset, taken)
        left.remove(path)
        yield answer
  except InputError as error:
    yield from (Answer(path, str(error)) for path in left)


def _store(
  association: Association,
  path: pathlib.Path,
  dataset: Dataset,
  taken: Collection[str],
) -> Answer:
  if str(dataset.SOPClassUID) not in taken:
    return Answer(path, _takes_no([str(dataset.SOPClassUID)]))
  if not association.is_established:
    return Answer(path, 'the connection was ended before it was sent')
  seconds = _STORE + path.stat().st_size / _SLOWEST
  association.dimse_timeout = association.network_timeout = seconds
  try:
    status = association.send_c_store(dataset)
  except (AttributeError, RuntimeError, ValueError) as error:
    return Answer(path, f'cannot be sent ({" ".join(str(error).split())})')
  if 'Status' not in status:
    return Answer(path, f'no answer within {seconds:.3g} s, or none at all')
  code = int(status.Status)
  text = describe(code, str(status.get('ErrorComment') or ''))
  if not is_kept(code):
    return Answer(path, text)
  return Answer(path, note=text if code else '')


@contextlib.contextmanager
def _associated(
  node: Node, classes: Sequence[str], seconds: float
) -> Iterator[tuple[Association, set[str]]]:
  """Yields an association, and which of some SOP classes it is for.

  Args:
    node: the other side.
    classes: their UIDs.
    seconds: that an answer may take, once they are associated.

  Raises:
    InputError: there is none.
  """
  # What goes wrong is told once, here.
  logging.getLogger('pynetdicom').setLevel(logging.CRITICAL + 1)
  entity = AE(ae_title=node.calling)
  entity.connection_timeout = _CONNECT
  entity.acse_timeout = _ANSWER
  entity.dimse_timeout = entity.network_timeout = seconds
  entity.requested_contexts = [
    build_context(uid, syntax) for uid in classes for syntax in _SYNTAXES
  ]
  refusals: list[str] = []  # the association forgets one that comes at once

  def note(event: evt.Event) -> None:
    if isinstance(event.pdu, A_ASSOCIATE_RJ):
      refusals.append(event.pdu.reason_str)

  try:
    association = entity.associate(
      node.host,
      node.port,
      ae_title=node.called,
      evt_handlers=[(evt.EVT_PDU_RECV, note)],
    )
  except OSError as error:  # of a name that nobody knows
    raise InputError(f'{node.name}: {_unreachable(error)}') from error
  try:
    if not association.is_established:
      reason = _why_not(node, association, classes, refusals)
      raise InputError(f'{node.name}: {reason}')
    # Else one who no longer reads what is sent holds this program for ever.
    held = association.dul.socket
    connection = None if held is None else held.socket
    if connection is not None:
      with contextlib.suppress(OSError):  # the other side has ended it
        connection.settimeout(seconds)
    taken = {str(c.abstract_syntax) for c in association.accepted_contexts}
    yield association, taken
  finally:
    if association.is_established:
      association.release()


def _why_not(
  node: Node,
  association: Association,
  classes: Sequence[str],
  refusals: Sequence[str],
) -> str:
  """Returns why there is no association."""
  if refusals:
    return (
      f'refuses {node.calling} as caller of {node.called} '
      f'({refusals[0]}); check the titles in '
      'dicom://CALLING@CALLED@HOST:PORT'
    )
  if association.rejected_contexts:
    return _takes_no(classes)
  try:
    with socket.create_connection((node.host, node.port), _CONNECT):
      return (
        'something listens there, but speaks no DICOM, or not within '
        f'{_ANSWER} s; check the port'
      )
  except OSError as error:
    return _unreachable(error)


def _unreachable(error: OSError) -> str:
  reason = error.strerror or str(error)
  return f'cannot be reached ({reason}); check host and port'


def _takes_no(classes: Sequence[str]) -> str:
  names = ', '.join(UID(uid).name for uid in classes)
  return f'takes no {names} without compression from this program'
