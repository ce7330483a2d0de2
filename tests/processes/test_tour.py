"""The notebook of docs/, as Jupyter runs it."""

import os
import re

import nbclient
import nbformat
from helpers import ROOT

DOCS = os.path.join(ROOT, "docs")


def read():
    return nbformat.read(os.path.join(DOCS, "tour.ipynb"), as_version=4)


def test_the_notebook_runs():
    where = {"metadata": {"path": DOCS}}
    client = nbclient.NotebookClient(
        read(), timeout=600, kernel_name="python3", resources=where
    )
    client.execute()  # its cells assert what they claim


def test_the_notebook_is_kept_with_its_pictures_and_no_noise():
    notebook = read()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data"}
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 8
    printed = "".join(output.get("text", "") for output in outputs)
    assert not re.search(r"/tmp|/home|/root|Warning|Error", printed)
    assert os.path.getsize(os.path.join(DOCS, "tour.ipynb")) < 500_000
