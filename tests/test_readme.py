import os
import re

from conftest import ROOT, run_python

import capsulenet

with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
    README = file.read()


def test_the_example_runs():
    example = re.search(r"<!-- example -->\n```python\n(.*?)```", README, re.DOTALL)[1]
    assert sum(bool(line) for line in example.splitlines()) <= 10
    run_python(example, ROOT)


def test_every_file_that_it_shows_is_there():
    links = re.findall(r"\]\(([^)]*)\)", README)
    local = [link for link in links if not link.startswith("http")]
    assert len(local) >= 3
    for link in local:
        assert os.path.exists(os.path.join(ROOT, link)), link


def test_every_flag_and_its_default_are_documented():
    table = dict(
        re.findall(r"^\| (?:`-\w`, )?`(--\w+)` \| ([^|]*) \|", README, re.MULTILINE)
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
