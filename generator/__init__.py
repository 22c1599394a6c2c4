"""From kernels.yaml and templates/ to a pack: load, validate, expand, render, compile, write the manifest."""

# Part of every digest of sources; raise it when the same sources would give another pack or pass other checks.
VERSION = 2
