"""Sends and reads by DICOMweb: STOW-RS, QIDO-RS, WADO-RS (PS3.18, section 10).

Who asks is told by the environment, MEDSEG_PACS_USER and MEDSEG_PACS_PASSWORD
or MEDSEG_PACS_TOKEN, else by ~/.netrc, and nowhere printed.
"""

import contextlib
import http.client
import logging
import os
import pathlib
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset

from medseg_jax.pacs.address import Web, is_uid
from medseg_jax.pacs.answers import Answer, describe, is_kept
from medseg_jax.runtime import files
from medseg_jax.runtime.errors import InputError, shorten

USER, PASSWORD = 'MEDSEG_PACS_USER', 'MEDSEG_PACS_PASSWORD'
TOKEN = 'MEDSEG_PACS_TOKEN'
_TIMES = (10, 120)  # seconds until it can be reached, and without a byte of it
_LONGEST = 200  # characters of a reason
_STUDY, _SERIES, _INSTANCE = '0020000D', '0020000E', '00080018'
_COUNT, _NUMBER = '00201209', '00200011'
_MODALITY, _DESCRIPTION = '00080060', '0008103E'
# What a server that only stores says to a search.
_NO_SEARCH = (405, 501)


class Series(NamedTuple):
  """What an archive says of a series.

  Attributes:
    study: UID of its study.
    uid: its own.
    number: '' where it has none.
    description: likewise.
    modality: likewise.
    size: number of its instances, 0 where the archive does not say.
  """

  study: str
  uid: str
  number: str
  description: str
  modality: str
  size: int

  @property
  def name(self) -> str:
    """What a person knows it by."""
    size = f'{self.size} objects' if self.size else ''
    words = (self.number, self.description, self.modality, size)
    return ' '.join(word for word in words if word)


def probe(web: Web, classes: Collection[str] = ()) -> None:
  """Makes sure that a service is there and lets this program in.

  Args:
    web: the service.
    classes: of what is to be sent, which it cannot be asked about.

  Raises:
    InputError: it is not, or does not.
  """
  del classes
  with _asking(web, 'search', allowed=_NO_SEARCH):
    connect(web).search_for_studies(limit=1)


def send(web: Web, paths: Sequence[pathlib.Path]) -> Iterator[Answer]:
  """Sends files, each in a request, and yields what became of each.

  Args:
    web: the service.
    paths: of DICOM objects.
  """
  client = connect(web)
  for path in paths:
    dataset = pydicom.dcmread(path)
    try:
      with _asking(web, 'store'):
        try:
          answer = client.store_instances([dataset])
        except requests.HTTPError as error:
          answer = _of_refusal(error)
    except InputError as error:
      yield Answer(path, str(error))
    else:
      yield _read_answer(path, answer, str(dataset.SOPInstanceUID))


def connect(web: Web) -> DICOMwebClient:
  """Returns a connection, which asks nothing yet.

  Raises:
    InputError: the environment tells half of who asks.
  """
  # What goes wrong is told once, here.
  logging.getLogger('dicomweb_client').setLevel(logging.CRITICAL + 1)
  session = requests.Session()
  session.auth = _credentials()
  session.headers['Accept'] = 'application/dicom+json'  # of answers to storing
  client = DICOMwebClient(
    web.url, session, callback=_plain_type, timeout=_TIMES
  )
  client.set_http_retry_params(retry=False)
  return client


def find_series(client: DICOMwebClient, web: Web) -> list[Series]:
  """Returns the series of a study, or the one that is meant.

  Raises:
    InputError: the service does not say.
  """
  asked = {'SeriesInstanceUID': web.series} if web.series else None

  def search(offset: int | None) -> list[dict[str, Any]]:
    return client.search_for_series(
      web.study,
      search_filters=asked,
      fields=['SeriesDescription', 'NumberOfSeriesRelatedInstances'],
      offset=offset,
    )

  with _asking(web, 'search for series'):
    return [
      Series(
        study=web.study,
        uid=uid,
        number=_value(found, _NUMBER),
        description=_value(found, _DESCRIPTION),
        modality=_value(found, _MODALITY),
        size=int(_value(found, _COUNT) or 0),
      )
      for uid, found in _pages(search, _SERIES).items()
    ]


def find_instances(
  client: DICOMwebClient, web: Web, series: Series
) -> list[str]:
  """Returns the UIDs of the instances of a series, in no order.

  Raises:
    InputError: the service does not say, or not of all.
  """

  def search(offset: int | None) -> list[dict[str, Any]]:
    return client.search_for_instances(series.study, series.uid, offset=offset)

  with _asking(web, 'search for instances'):
    found = list(_pages(search, _INSTANCE))
  if not found or len(found) < series.size:
    raise InputError(
      f'{web.name}: lists {len(found)} of the {series.size} instances of the '
      f'series {series.name}; allowed is a whole series'
    )
  return found


def retrieve(
  client: DICOMwebClient,
  web: Web,
  series: Series,
  uid: str,
  path: pathlib.Path,
) -> None:
  """Writes one instance as the archive has it, whole.

  Args:
    client: of `connect`.
    web: the service.
    series: of the instance.
    uid: of the instance.
    path: of the file.

  Raises:
    InputError: it did not come, or something else did.
  """
  with _asking(web, f'retrieve instance {uid}'), warnings.catch_warnings():
    # Of what other archives do the library warns in lines of its own.
    warnings.simplefilter('ignore')
    dataset = client.retrieve_instance(series.study, series.uid, uid)
    if str(dataset.get('SOPInstanceUID', '')) != uid:
      raise ValueError('another instance came')
    with files.replacing(path) as unfinished:
      dataset.save_as(unfinished, enforce_file_format=True)


def _pages(
  search: Callable[[int | None], list[dict[str, Any]]], tag: str
) -> dict[str, dict[str, Any]]:
  """Returns all that a search finds, by UID, however few come at a time."""
  found: dict[str, dict[str, Any]] = {}
  while True:
    page = {_value(each, tag): each for each in search(len(found) or None)}
    if wrong := [uid for uid in page if not is_uid(uid)]:
      raise ValueError(f'{shorten(wrong[0], _LONGEST)!r} is no UID')
    if not page.keys() - found.keys():
      return found
    found |= page


def _value(found: dict[str, Any], tag: str) -> str:
  """Returns the first value of an attribute in DICOM's JSON, '' for none."""
  values = found.get(tag, {}).get('Value') or ['']
  return ' '.join(str(values[0]).split())


def _credentials() -> Any:
  """Returns who asks; None where the environment does not say.

  Then ~/.netrc may.
  """
  user, password = os.environ.get(USER), os.environ.get(PASSWORD)
  if token := os.environ.get(TOKEN):

    def sign(request: Any) -> Any:
      request.headers['Authorization'] = f'Bearer {token}'
      return request

    return sign
  if (user is None) != (password is None):
    raise InputError(
      f'of {USER} and {PASSWORD} one is set; allowed are both, or {TOKEN}, or '
      'none'
    )
  return None if user is None else (user, password)


def _plain_type(response: Any, *args: Any, **named: Any) -> None:
  """Takes from an answer's type what the library would not know it with."""
  kind = response.headers.get('Content-Type', '')
  if not kind.startswith('multipart'):
    response.headers['Content-Type'] = kind.partition(';')[0].strip()


def _of_refusal(error: requests.HTTPError) -> Dataset:
  """Returns what a refused request says of its instances.

  Raises:
    HTTPError: nothing.
  """
  answer = error.response
  if answer is None or answer.status_code != 409:  # a conflict
    raise error
  try:
    return Dataset.from_json(answer.json())
  except Exception:  # of all kinds; it may be a page for people
    raise error from None


def _read_answer(path: pathlib.Path, answer: Dataset, uid: str) -> Answer:
  """Returns what became of an instance (PS3.18, table I.1-1)."""
  for item in answer.get('FailedSOPSequence') or []:
    code = item.get('FailureReason')
    text = 'refused without a reason' if code is None else describe(int(code))
    return Answer(path, text)
  for item in answer.get('ReferencedSOPSequence') or []:
    if str(item.get('ReferencedSOPInstanceUID', '')) == uid:
      code = int(item.get('WarningReason') or 0)
      text = describe(code) if code else ''
      return Answer(path, note=text) if is_kept(code) else Answer(path, text)
  return Answer(path, 'the answer does not say that it is kept')


@contextlib.contextmanager
def _asking(
  web: Web, what: str, allowed: Collection[int] = ()
) -> Iterator[None]:
  """Turns what goes wrong with a request into one line.

  Args:
    web: the service.
    what: is asked for.
    allowed: statuses that are no error.

  Raises:
    InputError: for all that the libraries raise.
  """
  try:
    yield
  except InputError:
    raise
  except requests.HTTPError as error:
    code = 0 if error.response is None else error.response.status_code
    if code not in allowed:
      raise InputError(f'{web.name}: {what}: {_status(code)}') from error
  except requests.Timeout as error:
    raise InputError(
      f'{web.name}: {what}: no answer within {_TIMES[0]} s to connect and '
      f'{_TIMES[1]} s to answer'
    ) from error
  except (
    requests.ConnectionError,
    requests.exceptions.ChunkedEncodingError,
  ) as error:
    raise InputError(
      f'{web.name}: {what}: cannot be reached ({_reason(error)}); check host, '
      'port and path'
    ) from error
  except Exception as error:  # the libraries raise all kinds
    raise InputError(
      f'{web.name}: {what}: its answer makes no sense ({_reason(error)})'
    ) from error


def _status(code: int) -> str:
  """Returns what a status of HTTP says, and what helps."""
  text = f'HTTP {code} {http.client.responses.get(code, "")}'.rstrip()
  if code in (401, 403):
    return (
      f'{text}; {USER} and {PASSWORD}, or {TOKEN}, in the environment, or '
      '~/.netrc, tell who asks'
    )
  return f'{text}; check the path and the UIDs' if code == 404 else text


def _reason(error: BaseException) -> str:
  """Returns why, of the innermost error that the system raised."""
  text = f'{type(error).__name__}: {error}'
  inner: BaseException | None = error
  while inner is not None:
    if isinstance(inner, OSError) and inner.strerror:
      text = inner.strerror
    inner = inner.__cause__ or inner.__context__
  return shorten(' '.join(text.split()), _LONGEST)
