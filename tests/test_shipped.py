import os
import site
from pathlib import Path

import pytest

from hunyuan_train import shipped


def test_other_processes_look_for_this_package_first_and_once() -> None:
    folder = str(shipped.CODE_FOLDER)
    assert shipped.python_path(None) == folder
    assert shipped.python_path("/mine") == os.pathsep.join([folder, "/mine"])
    assert shipped.python_path(os.pathsep.join(["/mine", folder])) == f"{folder}:/mine"


def test_nothing_comes_before_the_standard_library_where_python_looks_anyway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shipped, "CODE_FOLDER", Path(site.getsitepackages()[0]).resolve())
    assert shipped.python_path(None) == ""
    assert shipped.python_path("/mine") == "/mine"
