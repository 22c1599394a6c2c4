"""What other projects bring and expect: their checkpoints, and their names for the kernels' operations."""

from importlib import import_module

loader = import_module("..loader" if "." in __name__ else "loader", __name__)  # the package beside this one
