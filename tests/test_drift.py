"""Drift: the statistics against numbers worked out by hand, false alarms counted, and what the user is told."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy import stats

from export.results.drift import OUTLIERS, Drift, compare, write_outliers
from export.results.drift_text import describe_drift
from export.results.two_samples import compare_beyond_quantile, holm, ks_test, newcombe, share_changes, shares_test
from stdac.errors import StdacError

K = 5
EVEN = np.full(K, 1 / K)


def write_run(path: Path, seed: int, n: int = 1000, *, model: str = "a", **changes: Any) -> Path:
    """A clusters.parquet of n images of their own; changes: whole columns."""
    rng = np.random.default_rng(seed)
    cluster = changes.get("cluster", rng.choice(K, n, p=EVEN))
    columns: dict[str, Any] = {
        "source": [f"{path.stem}/{i}.png" for i in range(n)],
        "index": np.zeros(n, np.int64),
        "cluster": pa.array(cluster, pa.int32()),
        "confidence": pa.array(rng.beta(8, 2, n).astype(np.float32)),
        "content_hash": [f"{seed:016x}{i:016x}" for i in range(n)],
        "modified_ns": np.full(n, seed, np.int64) * 10**9 + np.arange(n),
    } | changes
    table = pa.table(columns).replace_schema_metadata({b"stdac.model_id": model.encode(), b"stdac.k": b"5"})
    pq.write_table(table, path)
    return path


def embedded(seed: int, n: int, spread: float = 1.0, d: int = 4) -> pa.Array:
    """A column of embeddings around zero."""
    z = np.random.default_rng(seed + 1000).normal(0, spread, (n, d)).astype(np.float16)
    return pa.FixedSizeListArray.from_arrays(pa.array(z.ravel()), d)


def both(tmp_path: Path, then: dict[str, Any] | None = None, now: dict[str, Any] | None = None) -> Drift:
    """A run of 1000 images and a later one, with changes."""
    old = write_run(tmp_path / "old.parquet", 1, **then or {})
    return compare(old, write_run(tmp_path / "new.parquet", 2, **now or {}))


def test_chi_squared_and_cramers_v_are_those_worked_out_by_hand() -> None:
    found = shares_test(stats, np.array([[50, 50, 0], [30, 70, 0]]))
    assert found is not None
    assert found.statistic == pytest.approx(200 * (50 * 70 - 50 * 30) ** 2 / (100 * 100 * 80 * 120))  # 8.33
    assert found.p == pytest.approx(0.0038925, rel=1e-4)
    assert found.effect == pytest.approx((found.statistic / 200) ** 0.5)  # .204; equal sides: the plain V


def test_the_effect_does_not_depend_on_how_many_images_there_are() -> None:
    effects = [shares_test(stats, np.array([[500 * a, 500 * a], [300 * b, 700 * b]])) for a, b in ((1, 1), (900, 1))]
    assert effects[0] is not None and effects[1] is not None
    assert effects[0].effect == pytest.approx(effects[1].effect)


def test_few_images_get_the_exact_chance_of_their_table() -> None:
    found = shares_test(stats, np.array([[5, 0], [1, 4]]))
    assert found is not None
    exact = stats.fisher_exact([[5, 0], [1, 4]]).pvalue
    assert found.p == pytest.approx(exact, abs=0.01)


def test_share_intervals_are_newcombes() -> None:
    change, low, high = newcombe(np.array([48, 56]), np.array([80, 70]), 1.959964)  # his 56/70 - 48/80
    assert (change, low, high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_kolmogorov_smirnov_is_the_one_worked_out_by_hand() -> None:
    found = ks_test(stats, np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.35, 0.5, 0.6, 0.7]))
    assert found is not None
    assert (found.statistic, found.p) == pytest.approx((0.75, 16 / 70))


def test_holm_is_the_one_worked_out_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.6]) == [1.0, 1.0]


@pytest.mark.parametrize(("n", "tail", "chance"), [(1, 0.01, 1 / 2), (99, 0.01, 1 / 100), (99, 0.02, 2 / 100)])
def test_the_chance_of_a_new_value_beyond_the_largest_is_that_of_its_rank(n: int, tail: float, chance: float) -> None:
    beyond, excess = compare_beyond_quantile(stats, np.arange(n, dtype=float), np.array([1000.0]), tail)
    assert excess is not None and beyond.all()
    assert (excess.expected, excess.seen, excess.p) == pytest.approx((chance, 1, chance))


def test_values_that_are_not_numbers_count_on_neither_side() -> None:
    then, now = np.array([1.0, np.nan, np.inf]), np.array([2.0, np.nan])
    beyond, excess = compare_beyond_quantile(stats, then, now, 0.01)
    assert excess is not None and excess.threshold == 1.0
    assert beyond.tolist() == [True, False] and excess.p == 0.5


def rate(found: list[bool]) -> float:
    return sum(found) / len(found)


@pytest.mark.parametrize(("n", "m"), [(5000, 700), (60, 30), (8, 12)])
def test_shares_that_did_not_change_raise_an_alarm_as_often_as_alpha_says(n: int, m: int) -> None:
    rng, p = np.random.default_rng(n), np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    draws = [np.stack([rng.multinomial(n, p), rng.multinomial(m, p)]) for _ in range(300)]
    assert rate([shares_test(stats, counts).p < 0.05 for counts in draws]) < 0.085  # type: ignore[union-attr]


def test_share_intervals_hold_together_as_often_as_they_say() -> None:
    rng, p, q = np.random.default_rng(0), np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.4, 0.3, 0.2, 0.1])
    held = []
    for _ in range(500):
        _, low, high = share_changes(np.stack([rng.multinomial(900, p), rng.multinomial(300, q)]))
        held.append(bool(((low <= q - p) & (q - p <= high)).all()))
    assert 0.93 < rate(held) <= 1


@pytest.mark.parametrize(("n", "m"), [(3000, 400), (50, 300)])
def test_outliers_of_the_same_distribution_raise_no_more_alarms_than_alpha_says(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    excesses = [compare_beyond_quantile(stats, rng.normal(size=n), rng.normal(size=m), 0.01)[1] for _ in range(400)]
    assert rate([excess.p < 0.05 for excess in excesses if excess is not None]) < 0.085
    seen = np.mean([excess.seen for excess in excesses if excess is not None])
    assert seen == pytest.approx(excesses[0].expected, rel=0.2)  # type: ignore[union-attr]


def test_runs_without_drift_are_seldom_said_to_drift(tmp_path: Path) -> None:
    sizes = []
    for seed in range(0, 120, 2):
        runs = [tmp_path / "old.parquet", tmp_path / "new.parquet"]
        for offset, (path, n) in enumerate(zip(runs, (600, 300), strict=True)):
            write_run(path, seed + offset, n, embedding=embedded(seed + offset, n))
        sizes.append(compare(*runs).size)
    assert rate([size != "none" for size in sizes]) <= 0.1
    assert not {"medium", "large"} & set(sizes)


def test_clusters_that_grew_are_found_and_named(tmp_path: Path) -> None:
    more = np.random.default_rng(0).choice(K, 1000, p=[0.5, 0.2, 0.1, 0.1, 0.1])
    drift = both(tmp_path, now={"cluster": more})
    assert drift.size == "medium" and drift.shares is not None and drift.shares.notable
    assert drift.low[0] > 0.2 and drift.low[1] < 0 < drift.high[1]
    text = describe_drift(drift, ["cat", "dog\n", "", "", ""])
    assert text.startswith("medium drift: the mix of clusters shifted by") and "cluster 0 (cat) from" in text
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()[:1].isdigit()}
    assert "share changed" in rows["0"] and "share changed" not in rows["1"] and "dog\\n" in rows["1"]


def test_a_model_that_is_less_sure_is_told_with_its_outliers(tmp_path: Path) -> None:
    unsure = np.random.default_rng(0).beta(5, 5, 1000).astype(np.float32)
    drift = both(tmp_path, now={"confidence": unsure})
    assert drift.size in ("medium", "large") and drift.low_confidence is not None
    assert drift.low_confidence.expected == pytest.approx(1000 * 10 / 1001)
    assert drift.low_confidence.seen == (unsure < drift.low_confidence.threshold).sum() == drift.outliers.low.sum()
    assert all(test is not None and test.notable for test in drift.by_cluster)
    assert "the model is less sure" in describe_drift(drift) and "of low confidence" in describe_drift(drift)


def test_images_far_from_their_cluster_are_listed(tmp_path: Path) -> None:
    z: NDArray[np.float16] = embedded(2, 1000).flatten().to_numpy().reshape(1000, 4).copy()
    z[:20] += 50
    column = pa.FixedSizeListArray.from_arrays(pa.array(z.ravel()), 4)
    low = np.random.default_rng(5).beta(8, 2, 1000).astype(np.float32)
    low[10] = 0.0
    drift = both(tmp_path, {"embedding": embedded(1, 1000)}, {"embedding": column, "confidence": low})
    assert drift.far is not None and drift.far.notable and drift.size == "small"
    assert write_outliers(tmp_path / "outliers.parquet", drift) == (drift.outliers.low | drift.outliers.far).sum()
    table = pq.read_table(tmp_path / "outliers.parquet")
    assert table.schema.equals(OUTLIERS)
    rows = {row["source"]: row for row in table.to_pylist()}
    assert all("far" in rows[f"new/{i}.png"]["why"] for i in range(20))
    assert rows["new/10.png"]["why"] == "low confidence; far from its cluster"
    assert rows["new/3.png"]["distance"] == pytest.approx(np.linalg.norm(z[3].astype(float)), abs=1)
    assert rows["new/10.png"]["confidence"] == 0.0 and list(rows) == sorted(rows, key=lambda s: int(s[4:-4]))


def test_distances_are_those_worked_out_by_hand_and_no_image_is_measured_against_itself(tmp_path: Path) -> None:
    def run(path: Path, seed: int, z: list[float], cluster: list[int]) -> Path:
        column = pa.FixedSizeListArray.from_arrays(pa.array(np.array(z, np.float16)), 1)
        return write_run(path, seed, len(z), cluster=cluster, embedding=column)

    old = run(tmp_path / "old.parquet", 1, [0.0, 1.0, 5.0, 9.0], [0, 0, 0, 1])
    drift = compare(old, run(tmp_path / "new.parquet", 2, [0.0, 7.0, 9.5, 1.0], [0, 0, 1, 2]))
    assert drift.outliers.distance is not None and drift.far is not None
    assert drift.outliers.distance.tolist() == pytest.approx([2, 5, 0.5, float("nan")], nan_ok=True)
    assert drift.far.threshold == pytest.approx(4.5)  # of 5 from the mean of 0 and 1
    assert (drift.far.seen, drift.outliers.far.tolist()) == (1, [False, True, False, False])


def test_without_embeddings_outliers_are_told_by_confidence_alone(tmp_path: Path) -> None:
    drift = both(tmp_path, {"embedding": embedded(1, 1000)})
    assert drift.far is None and drift.outliers.distance is None
    write_outliers(tmp_path / "outliers.parquet", drift)
    assert pq.read_table(tmp_path / "outliers.parquet")["distance"].null_count == drift.outliers.low.sum()


def test_images_that_could_not_be_read_are_left_out(tmp_path: Path) -> None:
    cluster = [None, *np.arange(999) % K]
    embedding = pa.concat_arrays([pa.nulls(1, embedded(1, 1).type), embedded(1, 999)])
    broken = {"cluster": cluster, "embedding": embedding, "content_hash": [None] * 1000}
    drift = both(tmp_path, broken, broken)
    assert (drift.then, drift.now, drift.known) == (999, 999, 0)
    assert drift.outliers.distance is not None and np.isnan(drift.outliers.distance[0])


def test_a_folder_that_grew_is_compared_by_what_came_since(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old.parquet", 1)
    grown = pa.concat_tables([pq.read_table(old), pq.read_table(write_run(tmp_path / "b.parquet", 2, 300))])
    pq.write_table(grown, tmp_path / "new.parquet")
    drift = compare(old, tmp_path / "new.parquet")
    assert (drift.then, drift.now, drift.known) == (1000, 300, 1000)
    assert drift.counts[1].sum() == 300 and not drift.outliers.low[:1000].any()
    assert "1,000 of the new run are the same ones again" in describe_drift(drift)


@pytest.mark.parametrize("column", ["source", "modified_ns"])
def test_a_folder_that_was_moved_or_an_archive_that_grew_holds_the_same_images(column: str, tmp_path: Path) -> None:
    old = pq.read_table(write_run(tmp_path / "old.parquet", 1))
    other = pa.array(["elsewhere"] * 1000) if column == "source" else pa.array([None] * 1000, pa.int64())
    pq.write_table(old.set_column(old.schema.get_field_index(column), column, other), tmp_path / "new.parquet")
    assert compare(tmp_path / "old.parquet", tmp_path / "new.parquet").known == 1000


def test_equal_pictures_taken_anew_are_new_images(tmp_path: Path) -> None:
    black = ["0" * 32] * 1000
    drift = both(tmp_path, {"content_hash": black}, {"content_hash": black})
    assert (drift.now, drift.known) == (1000, 0)


def test_the_same_run_again_has_nothing_to_compare(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old.parquet", 1)
    drift = compare(old, old)
    assert (drift.now, drift.size, drift.shares, drift.confidence) == (0, "none", None, None)
    assert "no new image" in describe_drift(drift)
    assert write_outliers(tmp_path / "outliers.parquet", drift) == 0


def test_an_earlier_run_without_images_is_told(tmp_path: Path) -> None:
    drift = both(tmp_path, {"n": 0})
    assert drift.size == "none" and "nothing to compare with" in describe_drift(drift)


def test_another_model_tells_both_sides_by_its_own_clusters(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old.parquet", 1)
    first = pq.read_table(old)
    turned = pa.array((first["cluster"].to_numpy() + 1) % K, pa.int32())
    turned = pa.array([4 if i < 30 else c for i, c in enumerate(turned.to_pylist())], pa.int32())
    since = pq.read_table(write_run(tmp_path / "b.parquet", 2, 400))
    new = pa.concat_tables([first.set_column(2, "cluster", turned), since])
    pq.write_table(new.replace_schema_metadata({b"stdac.model_id": b"b"}), tmp_path / "new.parquet")
    drift = compare(old, tmp_path / "new.parquet")
    assert drift.matching is not None and drift.matching.old_of == (4, 0, 1, 2, 3)
    assert (drift.then, drift.now) == (1000, 400) and 0.96 < drift.matching.agreement < 1
    assert drift.counts[0].tolist() == np.bincount(turned.to_numpy(), minlength=K).tolist()
    assert "the model is another one" in describe_drift(drift)


def test_another_model_may_have_fewer_clusters_than_the_earlier_one(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old.parquet", 1)
    both_runs = pa.concat_tables([pq.read_table(old), pq.read_table(write_run(tmp_path / "b.parquet", 2, 400))])
    three = pa.array(both_runs["cluster"].to_numpy() % 3, pa.int32())
    about = {b"stdac.model_id": b"b", b"stdac.k": b"3"}
    pq.write_table(both_runs.set_column(2, "cluster", three).replace_schema_metadata(about), tmp_path / "new.parquet")
    drift = compare(old, tmp_path / "new.parquet")
    assert drift.counts.shape == (2, 3) and drift.matching is not None and drift.matching.shared.shape == (5, 3)
    assert "cluster  name" in describe_drift(drift, ["a", None, "c"])


def test_another_model_without_common_images_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(
        StdacError, match=r"is of another model, and has 0 images in common with .*: they cannot be compared"
    ):
        both(tmp_path, now={"model": "b"})


def test_without_scipy_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(StdacError, match="or scikit-learn alone"):
        both(tmp_path)


def test_files_that_are_no_runs_are_one_sentence(tmp_path: Path) -> None:
    new = write_run(tmp_path / "new.parquet", 1)
    (tmp_path / "text.parquet").write_text("hello")
    pq.write_table(pa.table({"cluster": [1]}), tmp_path / "few.parquet")
    for name, said in {
        "text.parquet": r"cannot read .*/text\.parquet as clusters\.parquet \(Parquet file size is 5 bytes",
        "few.parquet": r"cannot read .*/few\.parquet as clusters\.parquet \(it has no column source\): write it again",
        "missing.parquet": r"there is no .*/missing\.parquet: expected a clusters\.parquet of an earlier stdac cluster",
    }.items():
        with pytest.raises(StdacError, match=said) as caught:
            compare(tmp_path / name, new)
        assert "\n" not in str(caught.value)


def test_many_images_that_differ_a_little_are_not_said_to_drift(tmp_path: Path) -> None:
    n = 100_000
    slightly = np.random.default_rng(0).choice(K, n, p=[0.21, 0.19, 0.2, 0.2, 0.2])
    old = write_run(tmp_path / "old.parquet", 1, n)
    drift = compare(old, write_run(tmp_path / "new.parquet", 2, n, cluster=slightly))
    assert drift.shares is not None and drift.shares.p < 1e-6 and drift.size == "negligible"
    assert describe_drift(drift).startswith("hardly any drift: what differs is more than chance")


MILLION = """
import sys, time
from pathlib import Path
import export.results.drift
began = time.monotonic()
drift = export.results.drift.compare(Path(sys.argv[1]), Path(sys.argv[2]))
export.results.drift.write_outliers(Path(sys.argv[3]), drift)
assert (drift.then, drift.now, drift.size) == (1_000_000, 1_000_000, "none"), drift
peak = Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]
print(int(peak) // 1024, time.monotonic() - began)
"""


@pytest.mark.slow
def test_two_million_images_are_compared_in_bounded_memory(tmp_path: Path) -> None:
    n = 1_000_000
    paths = [str(write_run(tmp_path / f"{i}.parquet", i, n, embedding=embedded(i, n, d=32))) for i in (1, 2)]
    words = [sys.executable, "-c", MILLION, *paths, str(tmp_path / "outliers.parquet")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert float(done.stdout.split()[0]) < 900, "MiB"
