import hashlib
import http.server
import io
import json
import os
import pickle
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from prototypes import everything, moved, random_crystal, rutile, simple_cubic

from crystal_fidelity.download import DownloadError
from crystal_fidelity.structures import Crystal

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from alignn_fixture import seeded_state, structures  # noqa: E402

from crystal_fidelity.features import alignn as weights  # noqa: E402
from crystal_fidelity.features.alignn import (  # noqa: E402  # noqa: E402  # noqa: E402
    Alignn,
    AlignnFeaturizer,
    build_graph,
    collate,
    convert_weights,
    fetch_weights,
    line_graph,
    load_weights,
    tensors_digest,
)

ORACLE = Path(__file__).parent / "data" / "alignn_oracle.npz"
ORACLE_MP20 = ORACLE.with_name("alignn_oracle_mp20.npz")


@pytest.fixture(scope="module")
def tensors():
    return seeded_state(Alignn())


@pytest.fixture(scope="module")
def network(tensors):
    net = Alignn()
    net.load_state_dict(tensors, strict=True)
    return net.eval()


@pytest.fixture(scope="module")
def checkpoint(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "checkpoint_300.pt"
    torch.save({"model": tensors}, path)
    return path


def latents(network, crystals, mode):
    with torch.no_grad():
        return network(collate([build_graph(c, mode) for c in crystals])).numpy()


def test_size_is_the_published_one():
    network = Alignn()
    assert sum(p.numel() for p in network.parameters()) == 4_026_753
    assert len(network.state_dict()) == 279


def parity(network, crystals, recorded):
    """Which graphs are the official ones, and the relative error of each latent vector."""
    graphs = [build_graph(c, "official") for c in crystals]
    counts = np.array([[len(g.sources), len(g.first_bonds)] for g in graphs])
    ours = latents(network, crystals, "official")
    error = np.abs(ours - recorded["latents"]).max(axis=1)
    return (counts == recorded["counts"]).all(axis=1), error / np.abs(recorded["latents"]).max(1)


def test_graphs_and_latents_are_the_official_codes(network):
    recorded = np.load(ORACLE)
    crystals = structures()
    assert len(crystals) == len(recorded["latents"]) >= 20
    equal, error = parity(network, crystals, recorded)
    assert equal.mean() >= 0.8  # rounding of equal distances differs between BLAS builds
    assert error[equal].max() < 1e-5


@pytest.mark.slow
def test_latents_of_real_crystals_are_the_official_codes(network, validation_csv):
    from crystal_fidelity.reading import read_structures

    recorded = np.load(ORACLE_MP20)
    by_name = {c.name: c for c in read_structures(validation_csv)}
    crystals = [by_name[name] for name in recorded["names"].tolist()]
    assert len(crystals) == len(recorded["latents"]) == 101
    equal, error = parity(network, crystals, recorded)
    assert equal.mean() >= 0.8
    assert error[equal].max() < 1e-5
    wrong, _ = parity(network, crystals[::-1], recorded)
    assert wrong.mean() < 0.1


@pytest.mark.parametrize("path", ["alignn_oracle.npz", "alignn_oracle_mp20.npz"])
def test_recorded_outputs_say_where_they_come_from(path):
    source = json.loads(str(np.load(ORACLE.parent / path)["provenance"]))
    assert source["packages"]["alignn"] == "2024.3.24"
    assert source["packages"]["dgl"] == "1.1.3"
    assert source["made by"] == "tools/record_alignn_oracle.py"


def test_parity_check_can_fail(network):
    recorded = np.load(ORACLE)["latents"]
    wrong = latents(network, structures()[::-1], "official")
    assert np.abs(wrong - recorded).max() / np.abs(recorded).max() > 1e-2


def test_batching_does_not_change_latents(network):
    crystals = everything()
    together = latents(network, crystals, "tie-tolerant")
    alone = np.concatenate([latents(network, [c], "tie-tolerant") for c in crystals])
    np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(alone).max())


def doubled(crystal):
    shifts = [[0.5 * i, 0, 0] for i in (0, 1)]
    return Crystal(
        crystal.lattice * np.array([[2.0], [1], [1]]),
        np.vstack([crystal.frac_coords * [0.5, 1, 1] + s for s in shifts]),
        np.tile(crystal.atomic_numbers, 2),
    )


@pytest.mark.parametrize("change", ["motion", "re-tiling"])
def test_tie_tolerant_latents_do_not_change(network, change):
    crystals = [*everything(), *(random_crystal(i, 5) for i in range(4))]
    other = [moved(c, 7) if change == "motion" else doubled(c) for c in crystals]
    plain = latents(network, crystals, "tie-tolerant")
    again = latents(network, other, "tie-tolerant")
    assert np.abs(again - plain).max() / np.abs(plain).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("change", ["motion", "re-tiling"])
def test_tie_tolerant_latents_of_real_crystals_do_not_change(network, validation_csv, change):
    from crystal_fidelity.reading import read_structures

    crystals = read_structures(validation_csv)[::300]
    plain = latents(network, crystals, "tie-tolerant")
    other = [moved(c, 7) if change == "motion" else doubled(c) for c in crystals]
    error = np.abs(latents(network, other, "tie-tolerant") - plain).max() / np.abs(plain).max()
    assert error < 1e-5
    moved_official = latents(network, other, "official") - latents(network, crystals, "official")
    assert np.abs(moved_official).max() / np.abs(plain).max() > 1e-3


def test_official_latents_do_change_under_motion(network):
    crystals = everything()
    plain = latents(network, crystals, "official")
    again = latents(network, [moved(c, 7) for c in crystals], "official")
    assert np.abs(again - plain).max() / np.abs(plain).max() > 1e-4


def test_shells_have_at_least_twelve_neighbours_and_bonds_run_both_ways():
    for crystal in [*structures(), simple_cubic(20.0, "Cs")]:
        graph = build_graph(crystal, "tie-tolerant")
        counts = np.bincount(graph.sources, minlength=len(crystal))
        assert counts.min() >= 12
        np.testing.assert_array_equal(counts, np.bincount(graph.targets, minlength=len(crystal)))
        np.testing.assert_allclose(graph.displacements.sum(axis=0), 0, atol=1e-9)
        ends = graph.targets[graph.first_bonds]
        np.testing.assert_array_equal(ends, graph.sources[graph.second_bonds])


def test_simple_cubic_has_its_first_and_second_shells():
    graph = build_graph(simple_cubic(3.0), "tie-tolerant")
    lengths, counts = np.unique(
        np.round(np.linalg.norm(graph.displacements, axis=1), 6), return_counts=True
    )
    assert lengths == pytest.approx([3.0, 3.0 * np.sqrt(2)], abs=1e-5)
    assert counts.tolist() == [6, 12]
    assert len(build_graph(simple_cubic(3.0), "official").sources) == 36  # own images twice


def test_line_graph_pairs_every_arriving_with_every_leaving_bond():
    first, second = line_graph(np.array([0, 0, 1]), np.array([0, 1, 0]), 2)
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [
        (0, 0), (0, 1), (1, 2), (2, 0), (2, 1),
    ]  # fmt: skip


def test_all_containers_of_the_same_weights_have_one_digest(tensors, checkpoint, tmp_path):
    zipped = tmp_path / "mp_e_form_alignnn.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("mp_e_form_alignnn/config.json", '{"model": {"alignn_layers": 4}}')
        archive.writestr("mp_e_form_alignnn/checkpoint_100.pt", b"not this one")
        archive.write(checkpoint, "mp_e_form_alignnn/checkpoint_300.pt")
    safe = tmp_path / "w.safetensors"
    digest = convert_weights(zipped, safe)
    for path in (checkpoint, zipped, safe):
        assert tensors_digest(load_weights(path)) == digest == tensors_digest(tensors)


def test_optimiser_states_beside_the_weights_are_ignored(tensors, tmp_path):
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=10)
    path = tmp_path / "checkpoint_1.pt"
    torch.save(
        {
            "model": tensors,
            "optimizer": optimiser.state_dict(),
            "lr_scheduler": schedule.state_dict(),
        },
        path,
    )
    assert tensors_digest(load_weights(path)) == tensors_digest(tensors)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("suffix", [".pt", ".zip"])
def test_a_hostile_checkpoint_is_refused_and_nothing_runs(tensors, tmp_path, suffix):
    path, witness = tmp_path / f"checkpoint_1{suffix}", tmp_path / "ran"
    content = {"model": tensors, "extra": Evil(witness)}
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"asks for posix.system"):
        load_weights(path)
    assert not witness.exists()
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"not a whole checkpoint of torch 1\.6"):
        load_weights(path)
    path.write_bytes(pickle.dumps(Evil(witness)))
    with pytest.raises(ValueError, match="not a whole"):
        load_weights(path)
    assert not witness.exists()


@pytest.mark.parametrize("inside", [False, True])
def test_a_torchscript_program_is_refused_before_torch_sees_it(tmp_path, monkeypatch, inside):
    class Program(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    path = tmp_path / "checkpoint_1.pt"
    torch.jit.script(Program()).save(str(path))
    if inside:
        outer = tmp_path / "official.zip"
        with zipfile.ZipFile(outer, "w") as archive:
            archive.write(path, "mp_e_form_alignn/checkpoint_1.pt")
        path = outer
    for loader in (torch, torch.jit):
        monkeypatch.setattr(loader, "load", lambda *_a, **_k: pytest.fail("torch was asked"))
    with pytest.raises(ValueError, match="TorchScript program"):
        load_weights(path)
    with pytest.raises(ValueError, match="TorchScript program"):
        convert_weights(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(("shape", "strides"), [((9,), (1,)), ((10**6, 3000), (0, 0))])
def test_tensors_beyond_their_numbers_are_refused(tmp_path, shape, strides):
    class Reach:
        def __reduce__(self):
            storage = torch.zeros(4).untyped_storage()
            typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32)
            return torch._utils._rebuild_tensor_v2, (typed, 0, shape, strides, False, {})

    torch.save({"model": {"x": Reach()}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="beyond its numbers"):
        load_weights(tmp_path / "a.pt")


def test_a_pickle_that_takes_gigabytes_for_its_places_is_refused(tmp_path):
    place = pickle.LONG_BINPUT + (10**8).to_bytes(4, "little")
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickle.PROTO + b"\x02" + pickle.NONE + place + pickle.STOP)
    with pytest.raises(ValueError, match="a place beyond its size"):
        load_weights(tmp_path / "a.pt")


def test_an_archive_that_holds_itself_for_ever_is_refused(tmp_path):
    content = b"x"
    for _ in range(2000):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("checkpoint_1.pt", content)
        content = buffer.getvalue()
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ValueError, match="not a whole"):
        load_weights(tmp_path / "a.zip")


@pytest.mark.parametrize("keep", [0, 10, 1000, 100_000, -100])
def test_truncated_files_are_refused(checkpoint, tmp_path, keep):
    data = checkpoint.read_bytes()
    safe = tmp_path / "whole.safetensors"
    convert_weights(checkpoint, safe)
    for name, content in (("a.pt", data), ("b.safetensors", safe.read_bytes()), ("c.zip", data)):
        path = tmp_path / name
        path.write_bytes(content[:keep])
        with pytest.raises(ValueError, match=r"not a whole|refused"):
            load_weights(path)


def test_weights_of_another_network_are_refused(tensors, tmp_path):
    fewer = {k: v for k, v in tensors.items() if not k.startswith("fc")}
    torch.save({"model": fewer}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"2 of 279 tensors"):
        load_weights(tmp_path / "a.pt")
    torch.save(
        {"model": tensors | {"fc.weight": torch.full((1, 256), torch.nan)}}, tmp_path / "b.pt"
    )
    with pytest.raises(ValueError, match="NaN"):
        load_weights(tmp_path / "b.pt")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("config.json", '{"model": {"hidden_features": 128}}')
        archive.writestr("checkpoint_1.pt", b"x")
    (tmp_path / "c.zip").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="hidden_features = 128"):
        load_weights(tmp_path / "c.zip")


@pytest.fixture
def published(monkeypatch):
    """A server on this machine in place of the published one; `files` says what it answers."""
    files = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body, promised = files.get(self.path, (None, 0))
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(promised))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_arguments: None  # a client that hangs up is the test
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in weights.PUBLISHED:
        monkeypatch.setitem(weights.PUBLISHED, name, f"http://127.0.0.1:{server.server_port}/w")
    yield files
    server.shutdown()


def test_download_is_checked_whole_and_leaves_no_wreck(published, checkpoint, tmp_path):
    data = checkpoint.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    published["/w"] = data, len(data)
    for name in ("mp_e_form_alignn", "mp_e_form_alignnn"):
        assert fetch_weights(name, tmp_path / f"{name}.pt", sha256=digest) == digest
        assert (tmp_path / f"{name}.pt").read_bytes() == data
    with pytest.raises(DownloadError, match="and not 00"):
        fetch_weights("mp_e_form_alignn", tmp_path / "x.zip", sha256="00")
    published["/w"] = data[:1000], len(data)
    with pytest.raises(DownloadError, match="cannot be downloaded"):
        fetch_weights("mp_e_form_alignn", tmp_path / "x.zip")
    published.clear()
    with pytest.raises(DownloadError, match="404"):
        fetch_weights("mp_e_form_alignn", tmp_path / "x.zip")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".pt", ".pt"]


def test_a_download_without_end_is_cut(published, monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "MAX_BYTES", 1 << 21)
    published["/w"] = bytes(1 << 23), 1 << 23
    with pytest.raises(ValueError, match="more than 2097152 bytes"):
        fetch_weights("mp_e_form_alignn", tmp_path / "x.zip")
    assert list(tmp_path.iterdir()) == []


def test_unknown_published_name_is_explained(tmp_path):
    with pytest.raises(ValueError, match="mp_e_form_alignnn"):
        fetch_weights("mp_gap", tmp_path / "x.zip")


def test_featurizer_names_mode_and_weights_and_counts_failures(checkpoint, tmp_path, tensors):
    official = AlignnFeaturizer(checkpoint, "official", tmp_path)
    tolerant = AlignnFeaturizer(checkpoint, "tie-tolerant", tmp_path)
    assert official.identity != tolerant.identity
    assert official.identity.weights_sha256 == tensors_digest(tensors)
    result = tolerant.features([rutile(), simple_cubic(0.3), simple_cubic(3.0, "Md")])
    assert len(result) == 1
    assert [name for name, _ in result.failures] == ["Po", "Md"]
    again = AlignnFeaturizer(checkpoint, "tie-tolerant", tmp_path)
    again._compute = lambda _: pytest.fail("the network was asked again")
    np.testing.assert_array_equal(again.features([rutile()]).features, result.features)
