"""Kernels for sm_90a that a real Hopper GPU and the emulated device both run, and what the GPU answered."""
