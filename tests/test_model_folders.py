"""Which paths may be read as weights: real paths are compared, existing or not."""

from pathlib import Path

import pytest

from runyard.model_folders import ModelFolders
from runyard.settings import SettingError, Settings, read_settings


@pytest.fixture
def folders(tmp_path: Path) -> ModelFolders:
    """A data folder with models and a checkpoint, a second model folder, and a file outside."""
    for path in (
        *(
            "data/models/own",
            "data/runs/org/run",
            "data/models-old/x",
            "data/secrets",
            "elsewhere/shelf",
        ),
        *("outside/secret", "elsewhere/owner/model"),
    ):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "config.json").write_text("{}")
    (tmp_path / "elsewhere/inner").symlink_to("shelf")
    (tmp_path / "elsewhere/out").symlink_to(tmp_path / "outside/secret")
    (tmp_path / "elsewhere/runs").symlink_to(tmp_path / "data/runs")
    (tmp_path / "data/models/stolen").symlink_to(tmp_path / "data/runs/org/run")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return ModelFolders((tmp_path / "data/models", tmp_path / "elsewhere"), tmp_path / "data")


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("data/models/own", "data/models/own"),
        ("elsewhere/shelf", "elsewhere/shelf"),
        ("elsewhere/inner", "elsewhere/shelf"),
        ("link/shelf", "elsewhere/shelf"),
        ("elsewhere/not-there", "elsewhere/not-there"),
        ("outside/../elsewhere/shelf", "elsewhere/shelf"),
        *(
            (path, None)
            for path in (
                "",
                "data",
                "data/models",
                "elsewhere",
                "outside/secret",
                "outside/not-there",
            )
        ),
        *(
            (path, None)
            for path in (
                "data/runs/org/run",
                "data/models-old/x",
                "data/secrets",
                "data/models/stolen",
            )
        ),
        *(
            (path, None)
            for path in ("elsewhere/out", "elsewhere/out/config.json", "elsewhere/runs/org/run")
        ),
        *(
            (path, None)
            for path in ("elsewhere/../data/runs/org/run", "elsewhere2/x", "loop/x", "link")
        ),
    ],
)
def test_a_path_is_judged_by_its_real_location(
    folders: ModelFolders, tmp_path: Path, path: str, real: str | None
) -> None:
    assert folders.resolve(f"{tmp_path}/{path}") == (None if real is None else tmp_path / real)


@pytest.mark.parametrize(
    "path", ["shelf", "./shelf", "~nobody-of-this-name/x", "/\0", "/\ud800", "/" + "x/" * 5000, ""]
)
def test_a_path_that_is_not_absolute_is_outside(folders: ModelFolders, path: str) -> None:
    assert folders.resolve(path) is None


def test_only_readable_models_are_listed_and_found(folders: ModelFolders, tmp_path: Path) -> None:
    (tmp_path / "elsewhere/.adding-7").mkdir()
    (tmp_path / "elsewhere/.adding-7/config.json").write_text("{}")
    assert folders.list_names() == ["inner", "own", "owner/model", "shelf"]
    assert folders.find("own") == tmp_path / "data/models/own"
    assert folders.find("owner/model") == tmp_path / "elsewhere/owner/model"
    for name in ("stolen", "out", "runs/org/run", "not-there", "../runs"):
        assert folders.find(name) is None


def test_a_model_folder_inside_the_data_folder_offers_nothing(tmp_path: Path) -> None:
    (tmp_path / "data/runs/org/run").mkdir(parents=True)
    (tmp_path / "data/models").symlink_to(tmp_path / "data/runs")
    folders = ModelFolders((tmp_path / "data/models",), tmp_path / "data")
    assert folders.resolve(tmp_path / "data/models/org/run") is None
    assert folders.resolve(tmp_path / "data/models/org") is None


@pytest.mark.parametrize(
    "listed", ["data", "data/runs", "data/models/../runs", ".", "to-data", "apart:data/secrets"]
)
def test_a_setting_that_exposes_the_data_folder_is_refused(tmp_path: Path, listed: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "to-data").symlink_to(tmp_path / "data")
    joined = ":".join(str(tmp_path / item) for item in listed.split(":"))
    with pytest.raises(SettingError, match=r"RUNYARD_MODEL_FOLDERS names .*data folder"):
        read_settings({}, data_dir=tmp_path / "data", model_folders=joined)


@pytest.mark.parametrize("listed", ["data/models", "data/models/shelves", "apart:apart-2"])
def test_folders_outside_the_data_folder_are_accepted(tmp_path: Path, listed: str) -> None:
    paths = [tmp_path / item for item in listed.split(":")]
    settings = read_settings(
        {}, data_dir=tmp_path / "data", model_folders=":".join(map(str, paths))
    )
    assert settings.models.folders == tuple(paths)
    assert Settings(data_dir=tmp_path).models.folders == (tmp_path / "models",)
