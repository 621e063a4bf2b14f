"""Which files of a corpus the user chooses or leaves out, by patterns as in .gitignore."""

from dataclasses import dataclass
from functools import cache

from pathspec import GitIgnoreSpec

from knnstore.errors import UsageError


@dataclass(frozen=True, slots=True)
class Selection:
    """The user's choice of files; UsageError for patterns that can't be used.

    ``include``: patterns of the files to take, whatever their type, and no others; empty for all files of known types.
    ``exclude``: patterns of files and folders to leave out. Both are matched against paths inside the folder that the
    corpus names. ``follow_links``: whether to follow symbolic links that lead out of the corpus.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow_links: bool = False

    def __post_init__(self) -> None:
        _spec("--include", tuple(self.include))
        _spec("--exclude", tuple(self.exclude))

    def excludes(self, path: str) -> bool:
        """Whether a file, or a folder whose path ends in ``/``, is left out."""
        return bool(self.exclude) and _spec("--exclude", tuple(self.exclude)).match_file(path)

    def includes(self, path: str) -> bool:
        """Whether a pattern chooses the file."""
        return bool(self.include) and _spec("--include", tuple(self.include)).match_file(path)


@cache
def _spec(option: str, patterns: tuple[str, ...]) -> GitIgnoreSpec:
    for pattern in patterns:
        try:
            usable = any(one.include is not None for one in GitIgnoreSpec.from_lines([pattern]).patterns)
        except ValueError:
            usable = False
        if not usable:
            raise UsageError(
                f"{option} {pattern!r} is no pattern that matches files: give one such as '*.py' or 'src/'"
            )
    return GitIgnoreSpec.from_lines(patterns)
