"""Imported by Python at startup when this directory is on the path: draws the first pipeline that runs."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import diagram

del sys.path[0]  # programs on pages must not see it
diagram.draw_first_pipeline(Path(os.environ["DRAW_INTO"]), os.environ["DRAW"])
