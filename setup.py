"""For `pip install --editable .` alone. What others install is the wheel of `python build.py --wheel`: it has kernels,
and one name of its own where a checkout has several that are anybody's."""

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class Refused(bdist_wheel):
    def run(self) -> None:
        raise SystemExit("a checkout is installed by `pip install --editable .`; `python build.py --wheel` makes one")


setup(cmdclass={"bdist_wheel": Refused})
