"""Puts the folders configs/ and launch/ inside the package, where `rfjax/shipped.py` finds them without a checkout.

pyproject.toml has all the rest; its list of packages cannot name folders that lie elsewhere.
"""

from setuptools import find_namespace_packages, setup

SHIPPED = {f"rfjax._shipped.{folder}": folder for folder in ("configs", "launch")}

setup(packages=[*find_namespace_packages(include=["rfjax*"], exclude=["*__pycache__"]), *SHIPPED], package_dir=SHIPPED)
