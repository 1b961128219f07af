"""What the doctor says: findings with a file, a value and a way out; as text for the terminal, as JSON for a file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning", "note"]
ORDER: tuple[Severity, ...] = ("error", "warning", "note")
SHOWN = 4
"""Files named per finding on the terminal; the JSON has all."""


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        severity: "error": training on this would be wrong, or stop; "warning": it may be; "note": worth knowing.
        check: which check found it, such as "registration".
        file: the file, or the setting, that it is about.
        value: what was found, with its number.
        fix: the way out.
        also: other files that it is about.
    """

    severity: Severity
    check: str
    file: str
    value: str
    fix: str
    also: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The files, the first few by name."""
        more = f", {len(self.also) - 2} more" if len(self.also) > 3 else ""
        shown = self.also[:2] if more else self.also
        return ", ".join([self.file, *shown]) + more


@dataclass
class Diagnosis:
    """All findings of a data set.

    Attributes:
        data: its name.
        files: how many were read.
        subjects: whose they are.
        compared: pairs of contrasts whose registration was looked at.
        seconds: how long it took.
        findings: the worst first.
    """

    data: str
    files: int = 0
    subjects: int = 0
    compared: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    def add(self, findings: Iterable[Finding]) -> None:
        """Take in findings, and keep the worst first; within a severity they stay in order."""
        self.findings = sorted([*self.findings, *findings], key=lambda f: ORDER.index(f.severity))

    def count(self, severity: Severity) -> int:
        """How many findings of a severity there are."""
        return sum(f.severity == severity for f in self.findings)

    @property
    def healthy(self) -> bool:
        """Whether there is no error."""
        return not self.count("error")

    @property
    def summary(self) -> str:
        """One line: what was looked at, and what was found."""
        counts = ", ".join(_number(self.count(s), s) for s in ORDER)
        pairs = f", {_number(self.compared, 'pair')} of contrasts compared" if self.compared else ""
        return (f"{self.data}: {_number(self.files, 'file')} of {_number(self.subjects, 'subject')} read{pairs}, in "
                f"{self.seconds:.1f} s: {counts}")  # fmt: skip

    def text(self) -> str:
        """For the terminal: findings of one kind together, with the first few files, and the summary."""
        kinds: dict[tuple[str, str, str], list[Finding]] = {}
        for found in self.findings:
            kinds.setdefault((found.severity, found.check, found.fix), []).append(found)
        lines = []
        for (severity, check, fix), those in kinds.items():
            lines.append(f"{severity}: {check}" + (f" ({len(those)})" if len(those) > 1 else ""))
            lines += [f"  {f.where}: {f.value}" for f in those[:SHOWN]]
            lines += [f"  and {len(those) - SHOWN} more (-o FILE.json lists all)"] if len(those) > SHOWN else []
            lines += [f"  -> {fix}", ""]
        return "\n".join([*lines, self.summary])

    def write(self, path: Path) -> None:
        """Everything as JSON.

        Args:
            path: the file; its folder is made where missing.

        Raises:
            UserError: it cannot be written.
        """
        from mri_synth.data.nifti import whole_file

        about = asdict(self) | {"summary": self.summary} | {f"{s}s": self.count(s) for s in ORDER}
        about["findings"] = about.pop("findings")  # last, since it is long
        with whole_file(path) as part:
            part.write_text(json.dumps(about, indent=2) + "\n")


def _number(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
