"""The benchmarks are scripts that import each other by their bare names; under pytest, too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
