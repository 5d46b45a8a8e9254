"""For `pytest --nbmake book/`: kernels start in this folder, but a relative SLMLIB_DATA is meant from the caller's."""

import os
from pathlib import Path

if folder := os.environ.get("SLMLIB_DATA"):
    os.environ["SLMLIB_DATA"] = str(Path(folder).expanduser().absolute())
