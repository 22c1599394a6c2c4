"""In the place where a wheel is made: puts bills of materials where PEP 770 has them, which setuptools does not do."""

import shutil

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class WithBills(bdist_wheel):
    def egg2dist(self, egginfo_path: str, distinfo_path: str) -> None:
        super().egg2dist(egginfo_path, distinfo_path)
        shutil.copytree("sboms", f"{distinfo_path}/sboms")


setup(cmdclass={"bdist_wheel": WithBills})
