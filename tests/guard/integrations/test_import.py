"""An integration can be imported where torchvision's wheel is built for CUDA and torch is not."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["lightning", "transformers"])
def test_an_integration_imports_in_a_fresh_interpreter(framework: str) -> None:
    if find_spec(framework) is None:
        pytest.skip(f"needs the extra: pip install gradguard[{framework}]")
    program = f"import guard.integrations.{framework}, torchvision"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
