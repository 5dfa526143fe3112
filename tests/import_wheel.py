"""Import limbeck from a built wheel, and read a bundled recipe: ``import_wheel.py WHEEL``."""

import subprocess
import sys
import tempfile
import zipfile

CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import limbeck
assert limbeck.__file__.startswith(sys.argv[1]), limbeck.__file__
from limbeck import api, cli
from limbeck.cli import catalogue, progress
from limbeck.experiment.run import Experiment
from limbeck.recipe.bundled import bundled
from limbeck.recipe.read import read
found = bundled("digits_kd")
assert str(found).startswith(sys.argv[1]), found
from limbeck.report.page import HERE
assert {"page.html", "page.css"} <= {file.name for file in HERE.iterdir()}
assert catalogue.recorded()["kd"], "the counts of recorded values are not there"
print("the wheel has limbeck", limbeck.__version__, "and the recipe", read(found).name)
"""

with tempfile.TemporaryDirectory() as folder:
    zipfile.ZipFile(sys.argv[1]).extractall(folder)
    sys.exit(subprocess.run([sys.executable, "-P", "-c", CODE, folder], cwd=folder, check=False).returncode)
