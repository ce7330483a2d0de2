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


A_RUN_OF_ITS_OWN = """
import capsulenet
from capsnet.architecture import architecture

data = ["--dataset", {data!r}]
capsulenet.main([*data, "--model", "short", "--epochs", "1", "--save_dir", "out"])
weights = ["-w", "out/trained_model.h5"]
capsulenet.main([*data, *weights, "-t", "--show_routing", "--save_dir", "out"])
(model, *_), _ = capsulenet.load_model(weights[1])
print("told:", architecture(model)["model"], model.count_params())
try:
    capsulenet.main([*data, *weights, "-t", "--model", "capsnet"])
except SystemExit as refused:
    print("code", refused.code)
"""


def test_the_network_that_the_docs_add_is_one_as_any_other(squares, tmp_path):
    house = tmp_path / "house"
    shutil.copytree(os.path.join(ROOT, "capsnet"), house / "capsnet")
    for name in ("capsulelayers.py", "capsulenet.py"):
        shutil.copy(os.path.join(ROOT, name), house)
    with open(os.path.join(ROOT, "docs", "design.md")) as file:
        section = file.read().split("### A network")[1].split("###")[0]
    networks = house / "capsnet" / "networks"
    (networks / "short.py").write_text(
        re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    )
    for path, line, more in (
        (house / "capsnet" / "flags.py", 'MODELS = ("capsnet", ', '"short", '),
        (networks / "__init__.py", "OTHERS = {", '"short": ShortCapsNet, '),
        (networks / "__init__.py", "from", " capsnet.networks.short import *\nfrom"),
    ):
        text = path.read_text()
        assert line in text
        path.write_text(text.replace(line, line + more, 1))
    said = run_python(A_RUN_OF_ITS_OWN.format(data=squares), house)
    assert "told: short" in said and "Test acc" in said and "code 2" in said
    assert (house / "out" / "routing-0.png").exists()
