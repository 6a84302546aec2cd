"""How large a training on one's own pictures is where nobody said, and what is said of it while it runs and after."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.ending import compare_with_kmeans, describe_settling, describe_sizes
from cluster_jobs.train_display import Clock
from stdac.methods import METHODS, resolve
from stdac.presets import NATIVE, PRESETS
from stdac.sizing import Survey, choose_epochs, choose_side, fill_preset, fill_sizes, survey_pictures

ST_DAC = METHODS["st-dac"]
SQUARE = frozenset({(64, 64)})


@pytest.mark.parametrize(
    ("images", "passes", "epochs"), [(3200, 1, 40), (3200, 2, 20), (12_800, 1, 10), (70_000, 1, 10), (100, 1, 400)]
)
def test_epochs_follow_from_the_images_to_be_seen(images: int, passes: int, epochs: int) -> None:
    assert choose_epochs(ST_DAC, images, passes) == epochs


def test_an_epoch_that_is_no_pass_is_left_alone() -> None:
    assert choose_epochs(METHODS["dec"], 100) == 125 and choose_epochs(METHODS["kmeans"], 100) == 0


@pytest.mark.parametrize(
    ("sizes", "side"),
    [([(64, 64)], 28), ([(28, 28)], None), ([(32, 20)], None), ([(33, 8)], 28), ([(8, 8), (9, 9)], 28), ([], None)],
)
def test_large_and_mixed_pictures_train_small(sizes: list[tuple[int, int]], side: int | None) -> None:
    assert choose_side(Survey(100, frozenset(sizes))) == side


def test_what_is_chosen_is_said_and_what_is_given_is_kept() -> None:
    spec, lines = fill_sizes({"dataset": "/x", "n_clusters": 5}, Survey(3200, SQUARE))
    assert (spec["epochs"], spec["image_size"], spec["params"]) == (40, 28, {"width": 0.25})
    assert lines == [
        "pictures of 64x64 pixels are resized to 28x28; --image-size N sets another side, native keeps them",
        "width 0.25, which loses little and is faster; --set width=1 for all of it",
        "3,200 pictures: 40 epochs, as ST-DAC needs to see about 128,000; --epochs N sets another number",
    ]
    given = {"dataset": "/x", "n_clusters": 5, "epochs": 3, "image_size": NATIVE, "params": {"width": 1.0}}
    spec, lines = fill_sizes(given, Survey(3200, SQUARE))
    assert spec == given | {"image_size": None} and not lines
    assert resolve(spec) == resolve(given | {"image_size": None})


@pytest.mark.parametrize(
    ("images", "limit", "said"),
    [
        (20_000, None, "20,000 pictures: 10 epochs, the number of ST-DAC itself"),
        (20_000, 6400, "6,400 pictures: 20 epochs, as ST-DAC needs"),
        (10, None, "10 pictures: 400 epochs, the most that are chosen, although ST-DAC needs to see about 128,000"),
    ],
)
def test_the_reason_for_the_epochs_is_the_true_one(images: int, limit: int | None, said: str) -> None:
    _, lines = fill_sizes({"dataset": "/x", "limit": limit}, Survey(images, frozenset({(28, 28)})))
    assert lines[-1].startswith(said)


def test_a_preset_fills_in_what_is_not_given_and_what_the_method_has() -> None:
    spec = {"method": "st-dac", "image_size": None, "background": "white", "params": {"stn": 1}}
    filled = fill_preset("glyphs", spec)
    assert filled == {"method": "st-dac", "image_size": 28, "background": "white", "params": {"stn": 1, "width": 0.25}}
    assert fill_preset("glyphs", {"method": "kmeans", "params": {}})["params"] == {}


def test_every_preset_is_a_trial_and_says_its_flags() -> None:
    for name, preset in PRESETS.items():
        filled = fill_preset(name, {"method": "st-dac", "dataset": "/x", "n_clusters": 3})
        assert resolve(filled).params.width == preset.params["width"]
        assert preset.flags.startswith("--image-size 28 ")


def test_a_survey_counts_and_measures_without_decoding(tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(np.zeros((40, 50), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no")
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(np.zeros((50, 40), np.uint8)).save(tmp_path / "turned.jpg", exif=turned)
    assert survey_pictures(str(tmp_path)) == Survey(5, frozenset({(40, 50)}))
    np.save(tmp_path / "a.npy", np.zeros((7, 20, 30), np.uint8))
    assert survey_pictures(str(tmp_path / "a.npy")) == Survey(7, frozenset({(20, 30)}))


def test_the_end_says_whether_it_had_settled() -> None:
    assert describe_settling(0.01, 40) == "settled: 1.0% of the images moved in the last epoch"
    assert describe_settling(0.063, 40).endswith(
        "6.3% of the images moved in the last epoch; --epochs 80 may find more"
    )


def test_empty_clusters_and_noise_show_in_the_sizes() -> None:
    assert describe_sizes(np.array([0, 0, 0, 2, -1]), 3) == "clusters of 0 to 3 images, median 1"


def test_the_silhouette_of_what_k_means_finds_is_its_own() -> None:
    points = np.array([[0.0], [1.0], [10.0], [11.0]])
    own, other = compare_with_kmeans(points, np.array([0, 1, 0, 1]), 2)
    assert own < 0 < other == pytest.approx(1 - (1 / 10.5 + 1 / 9.5) / 2)


def test_the_time_left_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 160.0, 220.0])
    monkeypatch.setattr("cluster_jobs.train_display.time.monotonic", lambda: next(times))
    clock = Clock(10)
    assert [clock.tell(4), clock.tell(6), clock.tell(10)] == ["", "2 min 00 s left", ""]
