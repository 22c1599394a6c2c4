"""Names of packs in registries: ``registry/repository:tag`` and ``registry/repository@sha256:...``."""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import ReferenceFormatError

# As the distribution specification of OCI has them; the registry is always named, so that none is meant by default.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(rf"(?P<registry>(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?)"
                        rf"/(?P<repository>{_PART}(?:/{_PART})*)"
                        r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
                        r"(?:@sha256:(?P<sha256>[0-9a-f]{64}))?")


class Reference(NamedTuple):
    """Tag, sha256 (hex) or both; where both are given the digest decides."""

    registry: str
    repository: str
    tag: str | None
    sha256: str | None

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}" + (f":{self.tag}" if self.tag else "") \
            + (f"@sha256:{self.sha256}" if self.sha256 else "")


def parse(text: str) -> Reference:
    """The reference that a text is; ``ReferenceFormatError`` where it is none."""
    found = _REFERENCE.fullmatch(text)
    if found is None or not (found["tag"] or found["sha256"]):
        raise ReferenceFormatError(f"{text!r} is neither registry/repository:tag nor registry/repository@sha256:...",
                                   reference=text)
    return Reference(found["registry"], found["repository"], found["tag"], found["sha256"])
