"""Every case, and which of them a record lacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hopper import arithmetic, copies, idioms, matrix, threads
from hopper.case import Case

CASES: list[Case] = [*arithmetic.cases(), *matrix.cases(), *copies.cases(), *threads.cases(), *idioms.cases()]


def about(record: Mapping[str, np.ndarray]) -> dict:
    """GPU, driver and date of a record, fingerprints of the cases as they were, and the fault of those it stopped."""
    return {"faulted": {}, "later": []} | json.loads(record["about"].tobytes())


def missing(path: Path) -> list[Case]:
    """The cases that the record of a path does not hold as they are."""
    with np.load(path) as record:
        known = about(record)["fingerprints"]
    return [case for case in CASES if known.get(case.name) != case.fingerprint()]
