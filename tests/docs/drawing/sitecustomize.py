"""Python imports this at its start, if it is told to draw: the first pipeline that runs becomes a picture."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import picture

del sys.path[0]  # no program of a page sees it
picture.remember_the_first(Path(os.environ["DRAW_INTO"]), os.environ["DRAW"])
