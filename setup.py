"""Builds the package from the values in settings.ini."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
pkg = cfg["lib_name"]
pythons = [f"3.{minor}" for minor in range(int(cfg["min_python"].split(".")[1]), 14)]
models = sorted(str(p.relative_to(here / pkg)) for p in (here / pkg / "lab" / "models").rglob("*") if p.is_file())
readme = here / "README.md"

setup(
    name=pkg,
    version=cfg["version"],
    description=cfg["description"],
    keywords=cfg["keywords"].split(),
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        f"Natural Language :: {cfg['language']}",
        *(f"Programming Language :: Python :: {v}" for v in pythons),
    ],
    packages=find_packages(include=[pkg, f"{pkg}.*"]),
    package_data={pkg: models},
    include_package_data=False,
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={
        "dev": cfg["dev_requirements"].split(),
        "docs": cfg["docs_requirements"].split(),
        "eval": cfg["eval_requirements"].split(),
        "lora": cfg["lora_requirements"].split(),
        "gguf": cfg["gguf_requirements"].split(),
    },
    entry_points={"nbdev": [f"{pkg}={pkg}._modidx:d"]},
    zip_safe=False,
)
