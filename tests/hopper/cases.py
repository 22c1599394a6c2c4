"""Every case."""

from __future__ import annotations

from hopper import arithmetic, copies, matrix, threads
from hopper.case import Case

CASES: list[Case] = [*arithmetic.cases(), *matrix.cases(), *copies.cases(), *threads.cases()]
