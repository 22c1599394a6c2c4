#!/usr/bin/env python3
"""Builds a pack: kernels.yaml x templates -> nvcc -> artifacts/. ``python build.py --help`` lists the options."""

import sys

from generator.cli import main

if __name__ == "__main__":
    sys.exit(main())
