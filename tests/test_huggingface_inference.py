"""The module of the Hugging Face handlers."""

from __future__ import annotations

import subprocess
import sys


def test_imports_without_tensorflow_unlike_beams_module():
    program = (
        "import sys\n"
        "sys.modules['tensorflow'] = None\n"
        "import runinference.huggingface_inference\n"
        "print('ours')\n"
        "import apache_beam.ml.inference.huggingface_inference\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "ours"
    assert "tensorflow" in done.stderr
