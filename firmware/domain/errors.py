"""What can be wrong with a kernel image or with the building of a domain, each as one clear sentence."""
from __future__ import annotations


class BadImageError(Exception):
    """A kernel image is malformed; the text is one sentence without the file's name."""


class ImageError(Exception):
    """A file is no kernel image a PV domain can start from; `path` says which, `sentence` why."""

    def __init__(self, path: str, sentence: str) -> None:
        super().__init__(f"{path}: {sentence}")
        self.path = path
        self.sentence = sentence


class BuildError(Exception):
    """A domain cannot be built from a good image; the text is one sentence that says what would help."""
