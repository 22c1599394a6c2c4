"""Formats of numbers and their arithmetic, and where elements lie: descriptors and swizzles."""
