"""What the README and the pages of docs/ show and state."""

import os
import re

import numpy as np
import pytest
from helpers import ROOT

import capsulenet
import reproduce

with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
    README = file.read()
TEXTS = [n for n in sorted(os.listdir(f"{ROOT}/docs")) if n.endswith((".md", ".ipynb"))]
PAGES = ["README.md", *(f"docs/{name}" for name in TEXTS)]


def page(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


@pytest.mark.parametrize("name", ["README.md", "docs/layers.md", "docs/networks.md"])
def test_the_example_runs(name, tmp_path, monkeypatch):
    text = page(name)
    example = re.search(r"<!-- example -->\n```python\n(.*?)```", text, re.DOTALL)[1]
    assert sum(bool(line) for line in example.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    os.symlink(f"{ROOT}/result", "result")
    exec(example, {})  # noqa: S102 (it is our own)


def test_it_is_short():
    assert len(README.splitlines()) < 160


@pytest.mark.parametrize("name", PAGES)
def test_every_file_that_it_shows_is_there(name):
    links = re.findall(r"\]\(([^)#]*)[^)]*\)", page(name))
    local = [link for link in links if not link.startswith("http")]
    assert len(local) >= 3 or name != "README.md"
    for link in local:
        path = os.path.join(ROOT, os.path.dirname(name), link)
        assert os.path.exists(path), link


def test_the_tests_that_the_pages_name_are_there():
    named = [n for p in PAGES for n in re.findall(r"tests/[\w/]+\.py", page(p))]
    assert named
    for name in named:
        assert name.endswith("/test_x.py") or os.path.exists(os.path.join(ROOT, name))


def test_the_map_shows_every_file_of_the_package():
    tree = re.search(
        r"<!-- tree -->(.*?)<!-- /tree -->", page("docs/design.md"), re.DOTALL
    )[1]
    shown = re.findall(r"^ *(\w[\w-]*\.py|\w+/) ", tree, re.MULTILINE)
    rooms = ("data", "networks", "training", "weights")
    folders = [os.path.join(ROOT, "capsnet"), ROOT]
    folders += [os.path.join(ROOT, "capsnet", name) for name in rooms]
    there = [n for f in folders for n in os.listdir(f) if n.endswith(".py")]
    there = [name for name in there if not name.startswith("__")]
    assert sorted(there) == sorted(name for name in shown if name.endswith(".py"))


def test_every_flag_and_its_default_are_documented():
    table = dict(
        re.findall(
            r"^\| (?:`-\w`, )?`(--\w+)` \| ([^|]*) \|",
            page("docs/options.md"),
            re.MULTILINE,
        )
    )
    words = {"None": ("none", "drawn"), "False": ("off",), "True": ("off",)}
    actions = {
        action.option_strings[-1]: action.default
        for action in capsulenet.build_parser()._actions
        if action.dest != "help"
    }
    assert table.keys() == actions.keys()
    for flag, default in actions.items():
        assert table[flag].strip("`") in words.get(str(default), (str(default),)), flag


def test_the_shipped_weights_have_the_error_that_is_stated():
    error, wrong = re.search(
        r"\*\*(\d\.\d\d)%\*\* test error, (\d+) images", README
    ).groups()
    assert float(error) == int(wrong) / 100
    path = os.path.join(ROOT, "result", "trained_model.h5")
    (_, model, _), about = capsulenet.load_model(path)
    _, (x, y) = capsulenet.load_mnist()
    result = capsulenet.predict(model, x, about["thresholds"])
    classes, _, _ = result
    assert 0.001 < np.mean(result.verdicts == "none") <= 0.01
    # One image may lie so near to the border that rounding decides.
    assert abs(np.sum(classes != y.argmax(1)) - int(wrong)) <= 1


def test_the_shipped_weights_of_pairs_have_the_error_that_is_stated(tmp_path, capsys):
    stated = re.search(
        r"\*\*(\d\.\d\d)%\*\* of 10,000 pairs", page("docs/multimnist.md")
    )
    path = os.path.join(ROOT, "result", "multimnist.h5")
    assert os.path.getsize(path) < 3_000_000
    flags = ["-t", "--dataset", "multimnist", "-w", path, "--save_dir", str(tmp_path)]
    capsulenet.main(flags)
    found = re.search(r"Test error: (\S+)%", capsys.readouterr().out)
    # Two pairs may lie so near to the border that rounding decides.
    assert abs(float(found[1]) - float(stated[1])) < 0.025


def test_its_tables_are_those_of_the_finished_runs():
    rows = reproduce.finished_runs(os.path.join(ROOT, "result", "mnist.csv"))
    tables = reproduce.table(rows).strip()
    assert rows and tables in page("docs/results.md")
    first = README.partition("<!-- table -->")[2].partition("<!-- /table -->")[0]
    assert tables.startswith(first.strip()) and "CapsNet-v4" in first
