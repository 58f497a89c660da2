"""What `check_model` returns: the comparisons that it made on a model, as text and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One comparison on one map.

    Attributes:
        recipe: Name of the map.
        claim: What was compared.
        passed: Whether it holds; False also if it could not be compared. None if nothing is asked: the map is refused,
            or the base does not run in this way either.
        difference: The largest difference of any logit, in standard deviations of the logits.
        reason: Why nothing is asked, or what does not run.
    """

    recipe: str
    claim: str
    passed: bool | None
    difference: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Certificate:
    """What `check_model` compared: `str()` of it is a page of text to paste, `to_dict()` its JSON."""

    architecture: str
    model_type: str
    num_layers: int
    dtype: str
    device: str
    versions: Mapping[str, str]
    maps: Mapping[str, str]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every comparison that was asked could be made, and none failed."""
        return all(finding.passed is not False for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as JSON values."""
        return {"passed": self.passed} | asdict(self)

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        wide = max(len(finding.recipe) for finding in self.findings)
        claims = max(len(finding.claim) for finding in self.findings)
        lines = [
            f"{'PASSED' if self.passed else 'FAILED'}: slinging {self.architecture} ({self.model_type}), "
            f"{self.num_layers} layers, {self.dtype} on {self.device}, on text",
            f"with {versions}",
            "",
            *(f"{f.recipe:<{wide}}  {f.claim:<{claims}}  {result_text(f)}" for f in self.findings),
            "",
            *(f"{name}: {written}" for name, written in self.maps.items()),
            "Differences are the largest of any logit, in standard deviations of the logits.",
        ]
        return "\n".join(lines)


def result_text(finding: Finding) -> str:
    """Return the outcome of a comparison in words: bit-equal, the difference, or the reason."""
    if finding.passed is None:
        return finding.reason
    difference = finding.difference
    number = "bit-equal" if difference == 0 else "" if difference is None else f"{difference:.1e}"
    text = number or finding.reason or ("yes" if finding.passed else "no")
    return text if finding.passed else f"FAILED {text}"
