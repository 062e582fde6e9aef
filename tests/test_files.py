"""Files and folders that are there whole or not at all."""

import shutil

import pytest

from experiments.files import remove_folder


def test_a_folder_that_is_being_removed_is_not_there_any_more_and_what_a_kill_leaves_goes_next_time(
    tmp_path, monkeypatch
):
    (tmp_path / "run" / "4").mkdir(parents=True)
    (tmp_path / "run" / "4" / "data").write_text("x")

    def killed(path, **kwargs):
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert list(tmp_path.rglob("data"))
    (tmp_path / "run" / "6").mkdir(parents=True)
    remove_folder(tmp_path / "run")
    assert not list(tmp_path.iterdir())
    remove_folder(tmp_path / "run")
