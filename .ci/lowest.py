"""Print the lowest versions that pyproject.toml allows, as constraints for pip."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
    if found := re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement):
        print("{}=={}".format(*found.groups()))
