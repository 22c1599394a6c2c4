"""From kernels.yaml and templates/ to a pack: load, validate, expand, render, compile, write the manifest."""

# Part of `source_digest`; raise it when the same sources would give another pack.
VERSION = 1
