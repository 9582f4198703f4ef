"""The command that trains: what it prints and writes, and what it refuses."""

import json
import os

import pytest
from PIL import Image

from mixqvit.commands import main
from mixqvit.errors import TrainingError
from mixqvit.packing.model import load_packed
from mixqvit.stages.store import Store
from mixqvit.study.study import Study
from tests.training.digits import few_training_digits

STUDY = ["train", "--model", "digits_swin", "--evaluation-images", "40"]


@pytest.fixture(autouse=True)
def own_cache(first_results, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXQVIT_CACHE", str(tmp_path / "cache"))
    first_results.put("digits_swin", Store())
    few_training_digits(monkeypatch)


def test_train_measures_writes_keeps_and_goes_on(tmp_path, capfd):
    path = tmp_path / "trained.safetensors"
    command = [*STUDY, "--bits", "2", "--epochs", "1", "--batch", "64"]
    assert main([*command, "--json", "--output", str(path), "--keep", "my model"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["bits"]["head.fc"] == [8, 8] and document["bits"]["layers.0.blocks.0.mlp.fc1"] == [2, 2]
    assert document["training"]["method"] == "lsq" and document["kept_epoch"] == 1 and len(document["epochs"]) == 1
    assert set(document["measured"]) == {"full precision", "post-training", "trained (lsq)"}
    assert document["measured"]["trained (lsq)"]["size_bytes"] == path.stat().st_size
    assert load_packed(path).recipe == "lsq"
    assert document["study"] == "my model"
    # The same training again: nothing is lost or gone on from by accident.
    assert main(command) == 2
    message = capfd.readouterr().err
    assert "1 of 1 epochs of this training are saved" in message and "--resume" in message and "--restart" in message
    assert main([*command, "--resume"]) == 0
    text = capfd.readouterr().out
    assert "kept: epoch 1" in text and "post-training" in text
    assert main(["layers", "--model", "my model"]) == 0


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_out_of_the_folder_of_training_images_are_followed(tmp_path, capfd, monkeypatch):
    def counted(study, bits, settings, source):
        *_, last = study.training.images_steps(source)
        raise TrainingError(f"it would train on {len(last.result)}")

    monkeypatch.setattr(Study, "training_steps", counted)
    (tmp_path / "linked").mkdir()
    for number in range(10):
        path = tmp_path / "elsewhere" / str(number) / "image.png"
        path.parent.mkdir(parents=True)
        Image.effect_noise((32, 32), number + 1).save(path)
        (tmp_path / "linked" / str(number)).symlink_to(path.parent)
    assert main([*STUDY, "--bits", "8", "--training-images", str(tmp_path / "linked")]) == 2
    assert "it would train on 10" in capfd.readouterr().err


@pytest.mark.slow
def test_train_takes_an_allocation_file_at_its_own_bits(tmp_path, capfd):
    allocation = tmp_path / "allocation.json"
    assert main(["layers", "--model", "digits_swin", "--json"]) == 0
    layers = [layer["name"] for layer in json.loads(capfd.readouterr().out)["layers"]]
    bits = {name: [3, 3] for name in layers}
    allocation.write_text(json.dumps({"mixqvit_recipe": 1, "model": "digits_swin", "bits": bits}))
    options = [
        "--allocation",
        str(allocation),
        "--evaluation-images",
        "40",
        "--epochs",
        "1",
        "--method",
        "ofq",
        "--json",
    ]
    assert main(["train", *options, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["bits"] == bits
    measured = document["measured"]
    assert measured["trained (ofq)"]["bitops"] > measured["post-training"]["bitops"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "one of the three"),
        (["--bits", "2", "--average-bits", "3"], "one of the three"),
        (["--bits", "1"], "2 to 8"),
        (["--average-bits", "9"], "2 to 8"),
        (["--bits", "2", "--epochs", "0"], "1 to 10,000 epochs"),
        (["--bits", "2", "--learning-rate", "-1"], "learning rate"),
        (["--bits", "2", "--training-images", "/nowhere"], "/nowhere"),
        (["--allocation", "/nowhere.json"], "cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capfd, options, message):
    assert main([*STUDY, *options]) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1


def test_resume_and_restart_exclude_each_other():
    with pytest.raises(SystemExit) as ended:
        main([*STUDY, "--bits", "2", "--resume", "--restart"])
    assert ended.value.code == 2


def test_the_earlier_name_of_the_method_still_works(capfd):
    assert main(["train", "--recipe", "ofq"]) == 2  # says no bits
    assert capfd.readouterr().err.startswith("--recipe is --method now.\n")
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--recipe", "mix-qvit"])
    assert "choose from" in capfd.readouterr().err
