"""The exceptions that `main` turns into one line."""


class InputError(ValueError):
  """Bad input: its message is one line that says what, where, what is allowed.

  `main` prints the line and exits with status 1. Library functions raise plain
  `ValueError` or `TypeError` for misuse by a programmer instead.
  """


class Stopped(Exception):
  """A signal ended the run between two steps, after saving.

  Attributes:
    signal: its number.
  """

  def __init__(self, message: str, signal: int):
    super().__init__(message)
    self.signal = signal
