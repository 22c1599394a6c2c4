"""The targets borrow the small pack and the driver of the loader's tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "loader"))
