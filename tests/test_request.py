"""What crosses from process to process: all of it, as JSON; what another version made is refused in a sentence."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster_jobs.request import Options, Request
from cluster_jobs.worker import main
from stdac.errors import StdacError

ODD = Path("/data/two\nlines, b\udcff and ü")
FULL = Options("cuda", 3, ODD, "metrics", 7)


@pytest.mark.parametrize("options", [Options(), FULL])
def test_all_of_a_request_crosses_as_json(options: Options) -> None:
    request = Request(ODD, options, nodes=4, workers=9, trials_per_gpu=2, simulate=True)
    assert Options.from_json(json.loads(json.dumps(options.to_json()))) == options
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_a_request_is_resolved_for_processes_that_start_elsewhere(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = Request(Path("run"), Options(data_dir=Path("data"))).resolve()
    assert (found.run, found.options.data_dir) == (tmp_path / "run", tmp_path / "data")
    assert Request(Path("run"), Options()).resolve().options == Options()


@pytest.mark.parametrize("values", [{"colour": "red"}, ["device"], "cpu", None])
def test_what_is_no_options_is_refused_in_a_sentence(values: object) -> None:
    with pytest.raises(StdacError, match=r"got .* (in|as) Options, expected"):
        Options.from_json(values)


@pytest.mark.parametrize(
    ("text", "said"), [('{"colour": 1}', "unknown key 'colour'"), ("{", "'{'"), ("[]", "as Options")]
)
def test_a_worker_says_what_is_wrong_with_its_options_and_ends(text: str, said: str, tmp_path: Path) -> None:
    ended = CliRunner().invoke(main, [str(tmp_path), text])
    assert ended.exit_code == 2 and said in ended.output.splitlines()[-1]
