"""Trials: resolution, ids, and the frozen files that others rely on."""

import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from stdac.errors import StdacError
from stdac.methods import METHODS, resolve
from stdac.methods.st_dac import STDACParams
from stdac.record import ASSIGNMENTS, METRICS
from stdac.trial import write_canonical
from tests.conftest import ALONE

FROZEN = Path(__file__).parent / "frozen"


def frozen_trials() -> dict[str, str]:
    specs = [{"dataset": d, "method": m, "seed": s} for d in ("digits", "mnist") for m in ALONE for s in (0, 7)]
    specs += [{"dataset": "digits", "method": "committee", "params": {"members": ["b" * 16, "a" * 16]}}]
    specs += [{"dataset": d, "params": {"stn": n, "preset": p}} for d in ("mnist", "fashion-mnist")
              for n in range(4) for p in ("code", "text")]  # fmt: skip
    return {write_canonical(spec): resolve(spec).id for spec in specs}


def test_ids_are_frozen(request: pytest.FixtureRequest) -> None:
    """Regenerate with: python -m tests.test_trial."""
    assert frozen_trials() == json.loads((FROZEN / "trial_ids.json").read_text())


def test_the_parquet_schemas_are_frozen() -> None:
    assert schemas() == json.loads((FROZEN / "schemas.json").read_text())


def schemas() -> dict[str, dict[str, str]]:
    tables = {"metrics": METRICS, "assignments": ASSIGNMENTS}
    return {name: {field.name: str(field.type) for field in schema} for name, schema in tables.items()}


def test_a_trial_survives_its_json() -> None:
    trial = resolve({"dataset": "mnist", "params": {"stn": 3, "lr": 1}, "limit": 500})
    assert resolve(json.loads(json.dumps(trial.to_json()))) == trial
    assert isinstance(trial.params.lr, float)
    with pytest.raises(FrozenInstanceError):
        trial.seed = 3  # type: ignore[misc]


def test_presets_follow_the_released_code_and_the_text() -> None:
    def preset(dataset: str, name: str, stn: int = 2) -> tuple[object, ...]:
        p = resolve({"dataset": dataset, "params": {"preset": name, "stn": stn}}).params
        return p.threshold_start, p.threshold_end, p.augmentation, p.dropout

    assert preset("mnist", "code") == (0.99, 0.80, "dac-mnist", 0.5)
    assert preset("fashion-mnist", "code") == (0.99, 0.90, "dac-cifar", 0.5)
    assert preset("mnist", "text") == (0.99, 0.90, "dac-mnist", 0.5)
    assert preset("fashion-mnist", "text") == (0.99, 0.80, "dac-mnist", 0.5)
    assert preset("mnist", "code", stn=0)[3] == 0.0  # the one released script without dropout
    assert preset("fashion-mnist", "code", stn=0)[3] == 0.5


def test_a_background_other_than_black_is_part_of_a_trial() -> None:
    spec = {"dataset": "photos", "n_clusters": 3, "method": "kmeans"}
    plain, auto = resolve(spec), resolve(spec | {"background": "auto"})
    assert plain == resolve(spec | {"background": "black"}) == resolve(plain.to_json())
    assert "background" not in plain.to_json() and auto.to_json()["background"] == "auto"
    assert plain.id != auto.id and resolve(auto.to_json()) == auto
    with pytest.raises(StdacError, match="unknown background 'red': expected one of black, white, auto"):
        resolve(spec | {"background": "red"})


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            {"dataset": "mnist", "method": "kmeens"},
            f"unknown method 'kmeens': expected one of {', '.join(METHODS)}",
        ),
        (
            {"dataset": "mnist", "params": {"stm": 2}},
            "unknown parameter of STDAC 'stm': expected one of " + ", ".join(f.name for f in fields(STDACParams)),
        ),
        (
            {"dataset": "mnist", "sed": 2},
            "unknown trial key 'sed': expected one of method, dataset, seed, n_clusters, epochs, params, limit, "
            "image_size, source, background",
        ),
        ({"dataset": "mnist", "params": {"stn": 4}}, "got stn = 4, expected one of 0, 1, 2, 3"),
        ({"dataset": "mnist", "params": {"stn": "two"}}, "got stn = 'two', expected int"),
        ({"dataset": "mnist", "params": {"lr": "fast"}}, "got lr = 'fast', expected float"),
        ({"dataset": "mnist", "n_clusters": 1}, "got n_clusters = 1, expected a whole number of at least 2"),
        ({"dataset": "mnist", "epochs": 0}, "got epochs = 0, expected a whole number of at least 1"),
        ({"dataset": "photos"}, "the number of clusters of photos is not known: pass n_clusters (--clusters)"),
        (
            {},
            "got dataset None, expected one of digits, mnist, fashion-mnist, kmnist, qmnist, usps, cifar10, or a path",
        ),
        ({"dataset": "mnist", "schema_version": 99}, "got a trial of schema version 99, this stdac reads 1"),
        (
            {"dataset": "mnist", "method": "pca-kmeans", "params": {"components": 1.5}},
            "got components = 1.5, expected a whole number, or a share in (0, 1)",
        ),
    ],
)
def test_what_cannot_be_resolved_says_what_was_got_and_expected(spec: dict, said: str) -> None:
    with pytest.raises(StdacError) as caught:
        resolve(spec)
    assert str(caught.value) == said


if __name__ == "__main__":
    FROZEN.mkdir(exist_ok=True)
    (FROZEN / "trial_ids.json").write_text(json.dumps(frozen_trials(), indent=1) + "\n")
    (FROZEN / "schemas.json").write_text(json.dumps(schemas(), indent=1) + "\n")
