"""Files with graphs are opened by their suffix, and say in one sentence why not."""

import copy
import zipfile

import pytest
import torch
from torch import nn

import tracer
from tests.builders.exported import decoder, decoder_inputs, exported
from tracer.adapters.graph import GraphModel
from tracer.adapters.opening import as_model
from tracer.errors import ModelLoadError


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "decoder.pt2"
    torch.export.save(exported(), path)
    return path


@pytest.mark.covers
def test_a_file_is_a_model_with_the_names_and_the_inputs_of_its_own(file) -> None:
    model = tracer.open_graph(file)
    assert type(model).__name__ == "Decoder"
    attention = model.get_submodule("blocks.1.attn")
    assert type(attention).__name__ == "Attention"
    assert not model.training
    own = dict(decoder().state_dict())
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())
    example = model.example_inputs()
    assert example is not None
    assert {name: value.shape for name, value in example.items()} == {
        name: value.shape for name, value in decoder_inputs().items()
    }
    comparison = tracer.compare(decoder(), model, decoder_inputs())
    assert comparison.verdict.outcome == "agrees"
    assert max(row.peir for row in comparison.rows) == 0
    assert not comparison.coverage.reference_only
    assert comparison.coverage.unused == 2  # the attention weights of both blocks
    assert "2 values that the graph does not have" in str(comparison.coverage)


def test_a_copy_is_a_model_of_its_own(file) -> None:
    model = tracer.open_graph(file)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_submodule("head").weight.zero_()
        zeroed, kept = (each(**decoder_inputs())["logits"] for each in (other, model))
    assert not torch.equal(zeroed, kept)
    torch.testing.assert_close(kept, decoder()(**decoder_inputs())["logits"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no archive", "is no archive of torch.export.save"),
        ("other.txt", "is an archive of something else"),
        ("archive/models/model.json", "cannot be opened by torch"),
    ],
)
def test_what_is_no_program_is_said(tmp_path, content, said) -> None:
    path = tmp_path / "broken.pt2"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(content, "{}")
    with pytest.raises(ModelLoadError, match=said) as raised:
        tracer.open_graph(path)
    assert "\n" not in str(raised.value)


def _changed(file, path, old: bytes, new: bytes):
    """A copy of a program's file with something else in its description."""
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith(("model.json", "archive_version")):
                data = data.replace(old, new)
            target.writestr(info.filename, data)
    return path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"torch.ops.aten.softmax.int", b"torch.ops.aten.softmaxx.int"),
        (b'"major": 8', b'"major": 99'),
        (b"builtins.dict", b"elsewhere.dict"),
    ],
)
def test_an_unknown_operator_format_or_container_is_said(tmp_path, file, old, new) -> None:
    path = _changed(file, tmp_path / "changed.pt2", old, new)
    with pytest.raises(ModelLoadError, match="cannot be opened by torch") as raised:
        tracer.open_graph(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


def test_other_suffixes_and_missing_files(tmp_path) -> None:
    with pytest.raises(ModelLoadError, match=r"the suffix '.onnxx': expected a graph, .pt2"):
        tracer.open_graph("model.onnxx")
    with pytest.raises(ModelLoadError, match="there is no file"):
        tracer.open_graph(tmp_path / "none.pt2")
    folder = tmp_path / "folder.pt2"
    folder.mkdir()
    with pytest.raises(ModelLoadError, match="is a directory"):
        tracer.open_graph(folder)


def test_what_is_a_model_already_stays_as_it_is() -> None:
    linear = nn.Linear(2, 2)
    assert as_model(linear) is linear
    traced = torch.fx.symbolic_trace(nn.Sequential(linear))  # it calls modules as they are
    assert as_model(traced) is traced
    graph = as_model(exported())
    assert isinstance(graph, GraphModel)
    assert as_model(graph) is graph
