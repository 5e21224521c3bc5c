"""Everything that can go wrong and be said in one line.

    SrganError                 base: a message for a person, with the remedy in it
    ├── UsageError             the request itself makes no sense (scale 0, no such folder); exit code 2
    │   ├── UnknownModelError  no bundled model and no file of that name
    │   └── RecipeError        a recipe that cannot be read: misspelt key, value out of range
    ├── PictureError           one picture cannot be read or written; the next one may
    │   ├── UnsupportedPictureError   a format or pixel mode that is refused rather than damaged
    │   ├── FormatError               the format that was asked for cannot hold the result
    │   └── PictureTooLargeError      refused from its header, before any pixel is decoded
    ├── OutputError            the place of the results takes no more (full, read-only); the run cannot go on
    ├── WeightsError           a weights or checkpoint file that is damaged, foreign or does not match
    ├── BackboneError          ImageNet weights for VGG or AlexNet cannot be had
    ├── GuardError             the process that decodes pictures safely cannot be had
    ├── EngineError            inference failed; never papered over
    │   ├── OutOfMemoryError   a smaller piece of the picture may fit
    │   └── PrecisionError     half precision will not do; float32 may
    └── TrainingError          a run that cannot go on (it diverged, the disk is full)

The command line maps these to exit codes in one place (`srgan.commands.cli.main`).
"""


class SrganError(Exception):
    """Base of all errors that this package raises on purpose; its text is fit to be shown to a user."""


class UsageError(SrganError):
    """The request makes no sense as it stands."""


class UnknownModelError(UsageError):
    """No bundled model and no file has the given name."""


class RecipeError(UsageError):
    """A training recipe that cannot be used as written."""


class PictureError(SrganError):
    """A picture that cannot be read or written."""


class UnsupportedPictureError(PictureError):
    """A picture whose format or pixel mode is not supported; nothing is converted silently."""


class FormatError(PictureError):
    """A result that the format it was asked for in cannot hold."""


class PictureTooLargeError(PictureError):
    """A picture whose header promises more pixels than the limit."""


class OutputError(SrganError):
    """The place of the results takes no more: the disk is full or read-only, or its records are damaged."""


class WeightsError(SrganError):
    """A weights or checkpoint file that is damaged, of another architecture, or fails its hash."""


class BackboneError(SrganError):
    """Weights of a pre-trained backbone (VGG, AlexNet) cannot be had."""


class GuardError(SrganError):
    """The process in which pictures are decoded cannot be started, or its decoder is closed."""


class EngineError(SrganError):
    """Inference failed or produced something that is not a picture."""


class OutOfMemoryError(EngineError):
    """Memory ran out during inference; what was asked for may succeed in smaller pieces."""


class PrecisionError(EngineError):
    """A result in half precision is not finite, or no longer resembles its input; float32 may do better."""


class TrainingError(SrganError):
    """A training run cannot go on."""
