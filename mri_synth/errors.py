"""Errors that are the user's to mend: shown as a message, without a traceback, with exit status 2."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a command, a config or a file: says what, the value, what is allowed, and the way out."""


class ConfigError(UserError):
    """Every mistake found in a config, listed at once.

    Args:
        problems: one message each.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        head = f"{count} mistake{'s' if count > 1 else ''} in the configuration; nothing was built or opened:"
        super().__init__("\n".join([head, *(f"  {i}. {p}" for i, p in enumerate(self.problems, 1))]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return ConfigError, (self.problems,)
