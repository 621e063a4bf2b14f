"""The user's selection of files by patterns as in .gitignore."""

from dataclasses import dataclass
from functools import cache

from pathspec import GitIgnoreSpec

from knnstore.errors import UsageError


@dataclass(frozen=True, slots=True)
class Selection:
    """The user's selection of files; raises UsageError for invalid patterns.

    ``include``: patterns of the only files to read, whatever their type; empty for all files of known types.
    ``exclude``: patterns of files and folders to skip. Both are matched against paths relative to the corpus folder.
    ``follow_links``: whether to follow symbolic links that lead out of the corpus.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow_links: bool = False

    def __post_init__(self) -> None:
        _spec("include", tuple(self.include))
        _spec("exclude", tuple(self.exclude))

    def excludes(self, path: str) -> bool:
        """Return whether a file, or a folder given with a trailing ``/``, is excluded."""
        return bool(self.exclude) and _spec("exclude", tuple(self.exclude)).match_file(path)

    def includes(self, path: str) -> bool:
        """Return whether a pattern includes the file."""
        return bool(self.include) and _spec("include", tuple(self.include)).match_file(path)


@cache
def _spec(parameter: str, patterns: tuple[str, ...]) -> GitIgnoreSpec:
    for pattern in patterns:
        try:
            usable = any(part.include is not None for part in GitIgnoreSpec.from_lines([pattern]).patterns)
        except ValueError:
            usable = False
        if not usable:
            fault, remedy = "isn't a pattern for files", "give one such as '*.py' or 'src/'"
            raise UsageError.about(parameter, pattern, fault, remedy=remedy, quoted=True)
    return GitIgnoreSpec.from_lines(patterns)
