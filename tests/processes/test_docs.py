"""The commands of docs/, as a user types them."""

import os
import re
import shutil

from helpers import ROOT, run_python


def test_the_files_that_the_docs_name_work_when_copied(tmp_path):
    with open(os.path.join(ROOT, "docs", "layers.md")) as file:
        command = re.search(r"^cp (.*) YOUR_PROJECT$", file.read(), re.MULTILINE)
    for name in command[1].removeprefix("--parents ").split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(os.path.join(ROOT, name), tmp_path / name)
    program = "import numpy; from capsulelayers import CapsuleLayer as C; "
    program += "print(C(3, 5)(numpy.ones((2, 9, 4), 'float32')).shape)"
    assert "2, 3, 5" in run_python(program, tmp_path)
