"""Everything masklet raises on purpose, as one tree.

MaskletError                    exit 2 unless said otherwise
├── UsageError                  a wrong argument or combination of arguments
│   ├── ConfigError             an unknown key, a value out of range (names file and key)
│   └── RunExistsError          the run folder exists and neither --resume nor --overwrite was given
├── SourceError                 this video cannot be read (exit 1 when other videos are complete, else 2)
│   ├── NoVideoError            readable, but without a video stream or without a single frame
│   └── SourceChangedError      the file changed or vanished while the job ran
├── DecodeError                 decoding stopped: nothing of the rest can be had
├── ModelError                  a checkpoint is missing, gated, unsafe or does not fit the architecture
├── DeviceError                 the device asked for does not exist, or is out of memory
├── RunError                    a run folder is damaged, foreign or of another schema version
├── FormatError                 a file to import, export or evaluate against is malformed
└── RunInterruptedError              Ctrl-C or SIGTERM: what is finished stays valid (exit 130)

An error says WHAT is wrong, WHERE (file, video, frame) and WHAT TO DO. Each is handled exactly once:
`pipeline.cli` turns it into one line and an exit code.
"""

from __future__ import annotations


class MaskletError(Exception):
    """Base of all expected errors. ``str(error)`` is the one-line message of the command line.

    Args:
        what: what is wrong, without a final full stop.
        where: the file, video, frame or key it concerns; empty if the message says so already.
        todo: what the user can do about it; empty if nothing sensible can be said.
    """

    exit_code = 2

    def __init__(self, what: str, where: str = "", todo: str = "") -> None:
        super().__init__(what, where, todo)
        self.what, self.where, self.todo = what, where, todo

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        todo = f": {self.todo}" if self.todo else ""
        return f"{self.what}{where}{todo}"


class UsageError(MaskletError):
    """A wrong argument or combination of arguments."""


class ConfigError(UsageError):
    """An unknown configuration key or a value out of range."""


class RunExistsError(UsageError):
    """The run folder exists and neither resuming nor overwriting was asked for."""


class SourceError(MaskletError):
    """A video that cannot be read."""


class NoVideoError(SourceError):
    """A readable file without a video stream or without a single decodable frame."""


class SourceChangedError(SourceError):
    """A source that changed or vanished during the job."""


class DecodeError(MaskletError):
    """Decoding stopped and the rest of this segment cannot be had."""


class ModelError(MaskletError):
    """A checkpoint that is missing, gated, unsafe or does not fit."""


class DeviceError(MaskletError):
    """A device that does not exist or is out of memory."""


class RunError(MaskletError):
    """A run folder that is damaged, foreign or of another schema version."""


class FormatError(MaskletError):
    """A file of a foreign format that is malformed or does not match."""


class RunInterruptedError(MaskletError):
    """The user or the system interrupted the job; what is finished stays valid."""

    exit_code = 130


def empty_phrase(text: str) -> UsageError:
    """What to say of a phrase of nothing but spaces."""
    return UsageError("a phrase is empty", repr(text), "say what to look for, for example --text person")
