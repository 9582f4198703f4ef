"""Opening studies: from descriptions, once for all sessions, within a bound of memory."""

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mixqvit.errors import AccessError, ImageError, ModelError
from mixqvit.files import open_studies
from mixqvit.files.open_studies import OpenStudies, open_study, settings_from
from mixqvit.files.uploads import uploads_folder
from mixqvit.stages.store import Store
from mixqvit.study.library import StudyDescription, find_study, keep_study
from mixqvit.study.study import Study

SMALL = {"evaluation_images": 10}


def description(**settings: object) -> StudyDescription:
    return StudyDescription("digits_swin", settings={**SMALL, **settings})


def opened(studies: OpenStudies, described: StudyDescription, factor: float = 1.0) -> Study:
    *_, last = studies.open_steps(described, factor)
    return last.result


def test_settings_of_the_description_are_used(tmp_path: Path):
    study = open_study(description(sampling_seed=3, calibration_seed=2), store=Store(tmp_path))
    assert len(study.evaluation_images) == 10
    assert study.settings.sampling_seed == 3
    assert study.settings.calibration_seed == 2


def test_a_setting_of_a_later_version_is_refused_by_name():
    with pytest.raises(ModelError, match="telepathy"):
        settings_from(StudyDescription("digits_vit", settings={"telepathy": True}))


def test_a_model_without_images_asks_for_them(tmp_path: Path):
    import torch

    from mixqvit.models.loading import load_model

    path = tmp_path / "weights.pth"
    torch.save(load_model("digits_swin").module.state_dict(), path)
    assert open_study(StudyDescription("digits_swin", str(path)), store=Store(tmp_path)).model.images == "digits"
    with pytest.raises(ImageError, match="neither"):
        open_study(StudyDescription("digits_swin", images=str(tmp_path / "nothing")), store=Store(tmp_path))


def test_what_numbers_mean_is_part_of_the_study(tmp_path: Path):
    for number in range(20):
        Image.new("L", (32, 32), number).save(tmp_path / f"{number:02}.png")
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n" + "".join(f"{number:02}.png,{number % 10 + 1}\n" for number in range(20)))
    described = StudyDescription("digits_swin", images=str(table))
    with pytest.raises(ImageError, match="--label-order"):
        open_study(described, store=Store(tmp_path))
    keep_study(Store(tmp_path), "counted from 1", replace(described, settings={"label_order": "number"}))
    kept = find_study(Store(tmp_path), "counted from 1")
    study = open_study(kept, store=Store(tmp_path))
    assert study.settings.label_order == study.image_sets.sampling.label_order == "number"
    labels = dict(zip(study.evaluation_images.names, study.evaluation_images.labels.tolist(), strict=True))
    assert all(int(name[:2]) % 10 == label for name, label in labels.items())
    assert Study(study.model, str(table), study.settings, Store(tmp_path)).evaluation_images.labels.tolist() == list(
        labels.values()
    )


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_are_followed_in_a_study_that_its_owner_described(tmp_path: Path):
    for number in range(20):
        path = tmp_path / "elsewhere" / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), number).save(path)
    (tmp_path / "linked").mkdir()
    for number in range(10):
        (tmp_path / "linked" / str(number)).symlink_to(tmp_path / "elsewhere" / str(number))
    described = StudyDescription("digits_swin", images=str(tmp_path / "linked"))
    with pytest.raises(ImageError, match="link that leads out"):
        open_study(described, store=Store(tmp_path))
    keep_study(Store(tmp_path), "owned", replace(described, follow_links=True))
    study = open_study(find_study(Store(tmp_path), "owned"), store=Store(tmp_path))
    assert study.image_sets.sample.found == 20
    assert any("10 link(s) that lead out of the folder are followed" in note for note in study.image_sets.sample.notes)


def test_a_removed_upload_says_so():
    gone = str(uploads_folder() / "abc" / "photos.zip")
    with pytest.raises(AccessError, match=r"photos\.zip was removed"):
        open_study(StudyDescription("digits_vit", images=gone))


def test_a_study_is_opened_once_for_all(monkeypatch: pytest.MonkeyPatch):
    studies, count = OpenStudies(10**12), []
    real = open_studies.open_study_steps

    def counted(*arguments):
        count.append(1)
        yield from real(*arguments)

    monkeypatch.setattr(open_studies, "open_study_steps", counted)
    found = [None] * 4

    def session(number: int) -> None:
        found[number] = opened(studies, description())

    threads = [threading.Thread(target=session, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(count) == 1
    assert len({id(study) for study in found}) == 1
    assert studies.find(description()) is found[0]


def test_different_studies_are_different():
    studies = OpenStudies(10**12)
    first, second = opened(studies, description()), opened(studies, description(), 4.0)
    third = opened(studies, description(sampling_seed=1))
    assert len({id(study) for study in (first, second, third)}) == 3
    assert second.settings.outlier_factor == 4.0


def test_those_used_longest_ago_are_closed_first():
    one = open_studies._bytes_of(opened(OpenStudies(0), description()))
    studies = OpenStudies(int(2.5 * one))
    for seed in range(2):
        opened(studies, description(sampling_seed=seed))
    assert studies.find(description(sampling_seed=0)) is not None  # used again
    opened(studies, description(sampling_seed=2))
    there = [studies.find(description(sampling_seed=seed)) is not None for seed in range(3)]
    assert there == [True, False, True]


def test_the_last_one_stays_open_however_large():
    studies = OpenStudies(0)
    opened(studies, description())
    assert studies.find(description()) is not None


def test_a_failure_to_open_leaves_the_way_free_for_the_next(monkeypatch: pytest.MonkeyPatch):
    studies = OpenStudies(10**12)
    with pytest.raises(ModelError):
        opened(studies, StudyDescription("no_such_model"))
    with pytest.raises(ModelError):
        opened(studies, StudyDescription("no_such_model"))
    opened(studies, description())


def test_a_session_that_goes_away_while_opening_blocks_nobody():
    studies = OpenStudies(10**12)
    steps = studies.open_steps(description())
    next(steps)
    steps.close()
    assert opened(studies, description()) is not None


def photographs(folder: Path, count: int) -> StudyDescription:
    for number in range(count):
        path = folder / "photos" / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), number + 1).save(path)
    return StudyDescription("digits_swin", images=str(folder / "photos"))


def test_files_that_have_changed_are_read_again_when_somebody_opens_the_study(tmp_path: Path):
    studies, described = OpenStudies(10**12), photographs(tmp_path, 30)
    first, amplified = opened(studies, described), opened(studies, described, 4.0)
    assert opened(studies, described) is first
    photographs(tmp_path, 40)
    assert studies.find(described) is first, "who works with it is not disturbed"
    again = opened(studies, described)
    assert (len(first.evaluation_images), len(again.evaluation_images)) == (27, 36)
    assert studies.find(described) is again
    assert studies.find(described, 4.0) is not amplified
    shutil.rmtree(tmp_path / "photos")
    assert opened(studies, described) is again, "uploads are removed after a while"
