"""Names of clusters: kept as they were written, refused when damaged, carried to the clusters that continue theirs."""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.results.names import LEAST_SHARED, Names, carry_names, load_names, match_clusters, write_names
from stdac.errors import StdacError


def run_table(clusters: list[int | None], model: str = "a", k: int = 3, first: int = 0) -> pa.Table:
    """A run over the images first, first + 1, …, with only the columns that matching reads."""
    hashes = [f"{i:032x}" for i in range(first, first + len(clusters))]
    table = pa.table({"content_hash": hashes, "cluster": pa.array(clusters, pa.int32())})
    return table.replace_schema_metadata({b"stdac.model_id": model.encode(), b"stdac.k": str(k).encode()})


def test_names_are_read_as_they_were_written(tmp_path: Path) -> None:
    names = Names("0123456789abcdef", {0: "cat", 2: 'a "b" \\ c\nd\t\x00\x7f é 漢 🎈 [clusters] # = '})
    write_names(tmp_path / "names.toml", names)
    assert load_names(tmp_path / "names.toml") == names
    assert names.of(4) == ("cat", "", names.clusters[2], "")


@given(st.dictionaries(st.integers(0, 999), st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=5))
def test_any_text_can_be_a_name(clusters: dict[int, str]) -> None:

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "names.toml"
        write_names(path, Names("m", clusters))
        assert load_names(path) == Names("m", clusters)
        assert tomllib.loads(path.read_text("utf-8"))["clusters"] == {str(k): v for k, v in clusters.items()}


def test_half_a_surrogate_pair_does_not_keep_the_names_from_being_written(tmp_path: Path) -> None:
    write_names(tmp_path / "names.toml", Names("m", {0: "\ud800"}))
    assert load_names(tmp_path / "names.toml") == Names("m", {0: "?"})


def test_an_empty_name_is_no_name_and_a_missing_file_is_no_names(tmp_path: Path) -> None:
    assert load_names(tmp_path / "names.toml") is None
    (tmp_path / "names.toml").write_text('model = "m"\n[clusters]\n"0" = ""\n1 = "one"\n')
    assert load_names(tmp_path / "names.toml") == Names("m", {1: "one"})


NO_NAMES = ' is no file of cluster names: expected model = "..." and a table [clusters], no more'
NO_LINE = ' in [clusters], expected lines such as 0 = "name"'
NO_ID = ", expected the id of a model: what stdac show calls its model_id"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", NO_NAMES),
        ("model", " is not TOML (Expected '=' after a key"),
        ('model = "m"', NO_NAMES),
        ("[clusters]", NO_NAMES),
        ('model = 1\n[clusters]\n0 = "a"', NO_NAMES),
        ('model = "../a"\n[clusters]\n0 = "a"', f" has model = '../a'{NO_ID}"),
        ('model = ""\n[clusters]\n0 = "a"', f" has model = ''{NO_ID}"),
        ('model = "m"\nclusters = 3', NO_NAMES),
        ('model = "m"\n[clusters]\n0 = 1', f" has 0 = 1{NO_LINE}"),
        ('model = "m"\n[clusters]\n-1 = "a"', f" has -1 = 'a'{NO_LINE}"),
        ('model = "m"\n[clusters]\n00 = "a"', f" has 00 = 'a'{NO_LINE}"),
        ('model = "m"\n[clusters]\ncat = "a"', f" has cat = 'a'{NO_LINE}"),
        ('model = "m"\n[clusters]\n"٣" = "a"', f" has ٣ = 'a'{NO_LINE}"),
        ('model = "m"\n[clusters]\n' + "9" * 5000 + ' = "a"', f" has {'9' * 5000} = 'a'{NO_LINE}"),
        ('model = "m"\n[clusters]\n[cluster]\n', NO_NAMES),
        ("a = " + "[" * 100_000, " is not TOML ("),
        ('model = "m"\n[clusters]\n0 = "\udcff"', " is not UTF-8 (byte 29 is ff): save it as UTF-8"),
    ],
)
def test_a_damaged_file_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "names.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(StdacError) as caught:
        load_names(tmp_path / "names.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'names.toml'}{said}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 6000


def test_a_folder_is_no_names_file(tmp_path: Path) -> None:
    with pytest.raises(StdacError, match=r"is not a file: expected a names\.toml, or none and it will be made"):
        load_names(tmp_path)


def test_names_for_more_clusters_than_the_model_has_are_refused() -> None:
    with pytest.raises(StdacError, match=r"cluster 3, but the model has clusters 0 to 2"):
        carry_names(Names("a", {3: "x"}), "a", 3, None, run_table([]))


def test_overlap_counts_each_content_once_and_only_images_of_both_runs() -> None:
    old = pa.concat_tables([run_table([0] * 6 + [1] * 6 + [None]), run_table([0] * 6)])
    new = run_table([2] * 5 + [0] * 6 + [1] * 4, first=1)
    matching = match_clusters(old, new)
    assert matching.shared.tolist() == [[0, 0, 5], [6, 0, 0], [0, 0, 0]]
    assert matching.old_of == (1, None, 0)
    assert (matching.images, matching.agreement) == (11, 1.0)


@pytest.mark.parametrize(
    ("new", "old_of"),
    [
        ([1] * 6 + [2] * 4, (None, 0, None)),  # the larger part of a split keeps the name
        ([1] * 5 + [2] * 5, (None, None, None)),  # halves do not
        ([1] * (LEAST_SHARED - 1), (None, None, None)),  # too few images
    ],
)
def test_a_cluster_continues_another_only_by_a_majority_on_both_sides(new: list[int], old_of: tuple[int, ...]) -> None:
    assert match_clusters(run_table([0] * 10), run_table(new)).old_of == old_of


def test_a_merged_cluster_continues_the_one_it_has_most_images_of() -> None:
    assert match_clusters(run_table([0] * 6 + [1] * 5), run_table([2] * 11)).old_of == (None, None, 0)
    assert match_clusters(run_table([0] * 6 + [1] * 6), run_table([2] * 12)).old_of == (None, None, None)


def test_an_optimal_assignment_would_pair_clusters_that_are_not_each_others_majority() -> None:
    matching = match_clusters(run_table([0] * 100 + [1] * 49, k=2), run_table([0] * 51 + [1] * 49 + [0] * 49, k=2))
    assert matching.shared.tolist() == [[51, 49], [49, 0]]
    assert matching.old_of == (0, None)


def test_names_stay_with_their_model() -> None:
    names = Names("a", {1: "cat"})
    assert carry_names(names, "a", 3, None, run_table([])) == (names, "")


def test_names_follow_their_images_to_another_model() -> None:
    names = Names("a", {0: "cat", 1: "dog", 2: "fish"})
    old = run_table([0] * 10 + [1] * 10 + [2] * 10)
    new = run_table([3] * 9 + [0] + [1] * 5 + [0] * 5 + [2] * 10, model="b", k=4)
    carried, sentence = carry_names(names, "b", 4, old, new)
    assert carried == Names("b", {3: "cat", 2: "fish"})
    assert "2 of 3 names" in sentence and "30 images" in sentence and '"dog"' in sentence and '"cat"' not in sentence


@pytest.mark.parametrize(
    ("old", "why"),
    [
        (None, "no earlier clusters.parquet"),
        (run_table([0] * 10, model="z"), "not of the model"),
        (run_table([0] * 10, first=1000), "0 images in common"),
    ],
)
def test_without_overlap_no_name_is_carried_and_the_user_is_told_why(old: pa.Table | None, why: str) -> None:
    carried, sentence = carry_names(Names("a", {0: "cat"}), "b", 3, old, run_table([0] * 10, model="b"))
    assert carried == Names("b", {}) and why in sentence


def test_files_that_are_no_runs_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("hello")
    pq.write_table(pa.table({"cluster": [1]}), tmp_path / "old.parquet")
    for name, said in {
        "text.parquet": r"cannot read .*/text\.parquet as clusters\.parquet \(Parquet file size is 5 bytes",
        "old.parquet": r"cannot read .*/old\.parquet as clusters\.parquet \(it has no column content_hash\): write",
        "missing.parquet": r"there is no .*/missing\.parquet: expected a clusters\.parquet of an earlier stdac cluster",
        ".": r"cannot read .* as clusters\.parquet \(.* is not a regular file\): write it again with stdac cluster",
    }.items():
        with pytest.raises(StdacError, match=said) as caught:
            match_clusters(tmp_path / name, run_table([0]))
        assert "\n" not in str(caught.value)


MILLION = """
import sys
from pathlib import Path
from export.results.names import match_clusters
matching = match_clusters(Path(sys.argv[1]), Path(sys.argv[2]))
assert matching.old_of == tuple(range(10)) and matching.images == 1_000_000
print(int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]) // 1024)
"""


def test_a_million_images_are_matched_in_bounded_memory(tmp_path: Path) -> None:
    hashes = np.random.default_rng(0).bytes(16 * 1_000_000).hex()
    column = pa.StringArray.from_buffers(
        1_000_000, pa.py_buffer(np.arange(0, 32_000_001, 32, dtype=np.int32)), pa.py_buffer(hashes.encode())
    )
    table = pa.table({"content_hash": column, "cluster": pa.array(np.arange(1_000_000) % 10, pa.int32())})
    pq.write_table(table, tmp_path / "old.parquet")
    pq.write_table(table.take(np.random.default_rng(1).permutation(1_000_000)), tmp_path / "new.parquet")
    words = [sys.executable, "-c", MILLION, str(tmp_path / "old.parquet"), str(tmp_path / "new.parquet")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 700, "MiB"
