"""What a run does, writes and refuses."""

import csv
import dataclasses
import json
import os
import pickle
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import config, outcome, same
from safetensors.torch import load_file

from crystorus.checkpoint import load_checkpoint, read_card
from crystorus.config import config_to_dict, load_config
from crystorus.crystal_model import build_model
from crystorus.data.batches import plan_batches
from crystorus.data.store import open_store
from crystorus.diffusion.cell_prior import fit_cell_statistics
from crystorus.diffusion.losses import draw_normals, losses_at_noise
from crystorus.errors import FileError, OutputError, TrainingError
from crystorus.train import loop
from crystorus.train.loop import Training, draw_steps, read_state, step_generator, train
from crystorus.train.options import check_settings

torch.set_num_threads(1)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def tensors(folder):
    weights = load_file(folder / "weights.safetensors")
    return {k: v for k, v in weights.items() if not k.startswith("statistics.")}


def plain_loop(settings):
    """Algorithm 1 without any framework: an independent way to the same averaged weights."""
    s = settings.training
    store = open_store(Path(settings.data.train))
    with torch.random.fork_rng():
        torch.manual_seed(s.seed)
        model = build_model(settings, fit_cell_statistics(store.select(range(len(store)))))
    weights = list(model.denoiser.parameters())
    adam = torch.optim.Adam(weights, s.learning_rate, betas=(0.9, s.adam_beta2))
    average = None
    plans = [
        plan_batches(store.n_atoms, np.random.default_rng([s.seed, e]),
                     batch_size=s.batch_size, batch_pairs=s.batch_pairs)
        for e in range(s.epochs)
    ]  # fmt: skip
    total = sum(map(len, plans))
    for step, batch in enumerate(b for plan in plans for b in plan):
        fall = min(1, (1 - step / total) / s.decay)
        adam.param_groups[0]["lr"] = s.learning_rate * min(1, (step + 1) / s.warmup_steps) * fall
        generator = step_generator(s.seed, step, 0)
        t = draw_steps(len(batch), model.diffusion.steps, generator=generator,
                       high_noise_fraction=s.high_noise_fraction)  # fmt: skip
        crystals = store.select(batch)
        noise = draw_normals(crystals, generator)
        losses = losses_at_noise(model.denoiser, model.diffusion, crystals, t, *noise)
        adam.zero_grad()
        cell, torus = losses.cell.clamp(max=s.loss_limit), losses.torus.clamp(max=s.loss_limit)
        (torus.mean() + s.cell_weight * cell.mean()).backward()
        torch.nn.utils.clip_grad_norm_(weights, s.clip_norm)
        adam.step()
        now = [w.detach().clone() for w in weights]
        keep = min(s.ema_decay, (1 + step) / (10 + step))
        average = now if average is None else [
            keep * a + (1 - keep) * w for a, w in zip(average, now, strict=True)
        ]  # fmt: skip
    return dict(zip([n for n, _ in model.denoiser.named_parameters()], average, strict=True))


def test_a_run_is_algorithm_1(stores, tmp_path):
    settings = config(stores, batch_pairs=60, warmup_steps=5, decay=0.5, loss_limit=3.0,
                      high_noise_fraction=0.5, cell_weight=0.7, adam_beta2=0.95)  # fmt: skip
    train(settings, tmp_path / "run")
    expected = plain_loop(settings)
    found = tensors(tmp_path / "run" / "last")
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-6), name
    other = plain_loop(
        dataclasses.replace(settings, training=dataclasses.replace(settings.training, seed=1))
    )
    assert not all(torch.allclose(found[n], v, atol=1e-6) for n, v in other.items())


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_both_presets_train_sample_and_load(stores, tmp_path, preset):
    settings = config(stores, preset=preset, epochs=2, sample_every=1, sample_crystals=2)
    train(settings, tmp_path / "run")
    model = load_checkpoint(tmp_path / "run" / "best")
    assert model.config == settings
    assert model.max_atoms == max(open_store(Path(settings.data.train)).n_atoms)
    last = rows(tmp_path / "run")[-1]
    assert 0 <= float(last["sample/valid"]) <= 1
    assert 0 <= float(last["sample/match_rate"]) <= float(last["sample/valid"])
    made = model.sample(torch.tensor([11, 17]), torch.tensor([2]), seeds=[0])
    assert made.atomic_numbers.tolist() == [11, 17]


def test_training_lowers_the_loss(stores, tmp_path):
    settings = config(stores, epochs=10, learning_rate=5e-3)
    same_crystals = dataclasses.replace(settings.data, validation=settings.data.train)
    train(dataclasses.replace(settings, data=same_crystals), tmp_path / "run")
    losses = [float(r["val/loss"]) for r in rows(tmp_path / "run") if r["val/loss"]]
    assert len(losses) == 10
    assert losses[-1] < 0.92 * losses[0]


def test_best_and_last_are_what_their_names_say(stores, tmp_path, monkeypatch):
    # A rate that grows spoils the second half of the run.
    rates = iter(range(10**6))
    monkeypatch.setattr(loop, "rate_factor", lambda *_, **__: 3 if next(rates) < 24 else 100)
    train(config(stores, epochs=4, ema_decay=0.5), tmp_path / "run")
    losses = [float(r["val/loss"]) for r in rows(tmp_path / "run") if r["val/loss"]]
    best, last = (read_card(tmp_path / "run" / name)["card"] for name in ("best", "last"))
    assert min(losses) < losses[-1]
    assert best["figures"]["val/loss"] == pytest.approx(min(losses), rel=1e-6)
    assert last["figures"]["val/loss"] == pytest.approx(losses[-1], rel=1e-6)
    assert not same(tensors(tmp_path / "run" / "best"), tensors(tmp_path / "run" / "last"))


def test_the_card_says_what_the_weights_were_made_of(stores, tmp_path):
    settings = config(stores, epochs=2)
    train(settings, tmp_path / "run")
    card = read_card(tmp_path / "run" / "last")["card"]
    store = open_store(Path(settings.data.train))
    assert card["data"]["train"]["crystals"] == 48
    assert card["data"]["train"]["sha256"] == store.header["sha256"]
    assert (card["steps"], card["epochs"], card["crystals_seen"]) == (24, 2.0, 96)
    assert card["parameters"] == sum(v.numel() for v in tensors(tmp_path / "run" / "last").values())
    assert card["torch"] == torch.__version__
    assert 0 < card["training_minutes"] <= card["wall_minutes"] < 5
    trained = read_card(tmp_path / "run" / "last")["trained_elements"]
    assert trained == sorted(set(store.arrays["atomic_numbers"].tolist()))


def test_validation_uses_the_same_noise_every_time_and_its_fifths_add_up(stores, tmp_path):
    # A rate of almost nothing: the weights, and so the losses, stay.
    train(config(stores, epochs=2, learning_rate=1e-12), tmp_path / "run")
    first, second = [r for r in rows(tmp_path / "run") if r["val/loss"]]
    for name in first:
        if name.startswith("val/") and first[name]:
            assert float(first[name]) == pytest.approx(float(second[name]), rel=1e-4, nan_ok=True)
    assert float(first["val/loss"]) == pytest.approx(
        float(first["val/cell"]) + float(first["val/torus"]), rel=1e-6
    )
    fifths = [float(first[f"val/cell_{i}"]) for i in range(1, 6)]
    assert min(fifths) <= float(first["val/cell"]) <= max(fifths)


def test_a_time_limit_runs_the_rate_down_and_validates_at_the_end(stores, tmp_path):
    limit = 0.05
    train(config(stores, epochs=10_000, minutes=limit, decay=0.5, log_every=1), tmp_path / "run")
    table = rows(tmp_path / "run")
    steps = [r for r in table if r["learning_rate"]]
    before = 0.0
    for row in steps:
        expected = 1e-3 * min(1, 2 * (1 - before / limit))
        assert float(row["learning_rate"]) == pytest.approx(expected, rel=1e-5)
        before = float(row["minutes"])
    assert float(steps[-1]["learning_rate"]) < 1e-3
    assert before >= limit > float(steps[-2]["minutes"])
    assert table[-1]["val/loss"]
    assert load_checkpoint(tmp_path / "run" / "last").card["steps"] == len(steps)


def test_sources_are_read_once_and_kept_beside_the_run(stores, tmp_path, capfd):
    settings = config(stores, epochs=1)
    data = dataclasses.replace(settings.data, train=str(stores / "train.extxyz"))
    train(dataclasses.replace(settings, data=data), tmp_path / "run")
    said = capfd.readouterr().err
    assert said.count("read once") == 1
    assert "train.extxyz" in said
    kept = open_store(tmp_path / "run" / "data" / "train.store")
    assert len(kept) == 48
    train(settings, tmp_path / "other")
    assert not (tmp_path / "other" / "data").exists()
    assert same(tensors(tmp_path / "run" / "last"), tensors(tmp_path / "other" / "last"))


def test_crystals_over_the_limit_are_left_out(stores, tmp_path):
    settings = config(stores, epochs=1)
    data = dataclasses.replace(settings.data, max_atoms=4)
    train(dataclasses.replace(settings, data=data), tmp_path / "run")
    card = read_card(tmp_path / "run" / "last")
    assert card["max_atoms"] <= 4
    assert card["card"]["data"]["train"]["crystals"] < 48


def test_fine_tuning_starts_from_the_weights_of_a_checkpoint(stores, tmp_path):
    train(config(stores, epochs=1), tmp_path / "first")
    settings = config(stores, epochs=1, learning_rate=1e-12,
                      start_from=str(tmp_path / "first" / "best"))  # fmt: skip
    train(settings, tmp_path / "second")
    old, new = (tensors(tmp_path / n) for n in ("first/best", "second/last"))
    assert all(torch.allclose(old[k], new[k], atol=1e-8) for k in old)
    fresh = tmp_path / "third"
    train(config(stores, epochs=1, learning_rate=1e-12), fresh)
    assert not all(torch.allclose(old[k], v, atol=1e-8) for k, v in tensors(fresh / "last").items())


def test_fine_tuning_from_another_network_is_refused(stores, tmp_path):
    train(config(stores, epochs=1), tmp_path / "first")
    settings = config(stores, start_from=str(tmp_path / "first" / "best"))
    wider = dataclasses.replace(settings.network, channels=24)
    with pytest.raises(TrainingError, match=r"start_from.*channels=16.*channels=24"):
        train(dataclasses.replace(settings, network=wider), tmp_path / "second")


@pytest.fixture(scope="module")
def finished(stores, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(config(stores, epochs=1), folder)
    return folder


def test_a_folder_with_a_run_is_refused_and_stays_as_it_is(stores, finished):
    before = outcome(finished)
    with pytest.raises(OutputError, match="already holds a run: add --resume"):
        train(config(stores, epochs=1), finished)
    assert same(outcome(finished), before)


def test_another_configuration_is_refused_with_the_difference(stores, finished):
    with pytest.raises(OutputError, match=r"training\.learning_rate is 0\.001, yours is 0\.002"):
        train(config(stores, epochs=1, learning_rate=2e-3), finished, resume=True)
    train(config(stores, epochs=1, workers=1), finished, resume=True)


def test_a_folder_with_something_else_is_refused(stores, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for resume in (False, True):
        with pytest.raises(OutputError, match="not empty and holds no run"):
            train(config(stores), tmp_path, resume=resume)
    with pytest.raises(OutputError, match="holds no run to resume"):
        train(config(stores), tmp_path / "empty", resume=True)
    with pytest.raises(FileError, match=r"thesis\.tex"):
        train(config(stores), tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_missing_data_are_named_with_the_remedy(stores, tmp_path):
    settings = config(stores)
    data = dataclasses.replace(settings.data, train="nowhere.csv")
    with pytest.raises(TrainingError, match=r'data\.train = "nowhere\.csv".*data get mp-20'):
        train(dataclasses.replace(settings, data=data), tmp_path / "run")


def test_other_data_under_the_same_name_are_refused(stores, tmp_path):
    store = tmp_path / "train.store"
    store.write_bytes((stores / "train.store").read_bytes())
    settings = config(stores, epochs=1)
    settings = dataclasses.replace(
        settings, data=dataclasses.replace(settings.data, train=str(store))
    )
    train(settings, tmp_path / "run")
    store.write_bytes((stores / "validation.store").read_bytes())
    with pytest.raises(TrainingError, match="put the old data back"):
        train(settings, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [("epochs", 0, "training.epochs = 0: give 1 or more"), ("decay", 2.0, "from 0 to 1"),
     ("learning_rate", -1.0, "positive"), ("batch_size", -3, "training.batch_size = -3"),
     ("batch_size", 0, "batch_size = 0 and batch_pairs = 0"),
     ("seed", 10**30, "training.seed = 1000000.*give at most 9223372036854775807"),
     ("devices", 10**30, "training.devices = 1000000.*give at most 4096")],
)  # fmt: skip
def test_impossible_settings_are_named(stores, tmp_path, setting, value, message):
    with pytest.raises(TrainingError, match=message):
        train(config(stores, **{setting: value}), tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [("diffusion", {"steps": 0}, r"diffusion\.steps = 0: give 1 or more"),
     ("diffusion", {"torus_lowest": -1.0}, "makes no process.*0 < lowest < highest"),
     ("sampling", {"steps": 0}, r"sampling\.steps = 0: give 1 or more"),
     ("sampling", {"steps": 21}, r"more than diffusion\.steps = 20"),
     ("network", {"channels": 0}, r"network\.channels = 0: give 1 or more"),
     ("training", {"accelerator": "cuda"}, "is not there")],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_before_a_folder_is_made(
    stores, tmp_path, monkeypatch, section, changes, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    good = config(stores)
    bad = dataclasses.replace(getattr(good, section), **changes)
    with pytest.raises(TrainingError, match=message):
        train(dataclasses.replace(good, **{section: bad}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def spoiled(monkeypatch, at, spoil):
    """Let the losses of one step be spoilt."""
    real = loop.losses_at_noise
    steps = iter(range(10**6))

    def losses(*args):
        found = real(*args)
        training = torch.is_grad_enabled()  # and not validation
        return spoil(found) if training and next(steps) == at else found

    monkeypatch.setattr(loop, "losses_at_noise", losses)


def infinite_loss(losses):
    return dataclasses.replace(losses, cell=losses.cell + float("inf"))


def nan_loss(losses):
    return dataclasses.replace(losses, torus=losses.torus * float("nan"))


def nan_gradient(losses):
    # The root of zero: a finite value with an infinite slope, times zero.
    zero = (losses.cell - losses.cell.detach()).abs().sqrt() * 0
    return dataclasses.replace(losses, cell=losses.cell + zero)


@pytest.mark.parametrize("spoil", [infinite_loss, nan_loss, nan_gradient])
def test_nothing_infinite_reaches_the_weights(stores, tmp_path, monkeypatch, spoil):
    settings = config(stores, loss_limit=20.0, save_minutes=0.0)
    spoiled(monkeypatch, 15, spoil)
    with pytest.raises(TrainingError, match=r"step 15 has .*failed-batch\.safetensors"):
        train(settings, tmp_path / "run")
    batch = load_file(tmp_path / "run" / "failed-batch.safetensors")
    assert len(batch["t"]) == 4
    assert len(batch["frac_coords"]) == int(batch["n_atoms"].sum())
    state = torch.load(tmp_path / "run" / "state" / "last.ckpt", weights_only=True)
    assert state["progress"]["step"] == 15
    assert all(torch.isfinite(v).all() for v in state["weights"].values())
    load_checkpoint(tmp_path / "run" / "last")
    # Once the cause is gone the run goes on as if nothing had been.
    monkeypatch.undo()
    train(settings, tmp_path / "run", resume=True)
    train(settings, tmp_path / "whole")
    assert same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def signalled(monkeypatch, step, number):
    """Let a signal arrive in the middle of a step."""
    real = Training.backward

    def interrupted(self, *args):
        if self.progress.step == step:
            os.kill(os.getpid(), number)
        return real(self, *args)

    monkeypatch.setattr(Training, "backward", interrupted)


@pytest.mark.parametrize(
    ("number", "leaves"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
@pytest.mark.parametrize("step", [17, 11])  # in the middle of an epoch and at its end
def test_a_signal_saves_stops_and_goes_on(stores, tmp_path, monkeypatch, number, leaves, step):
    settings = config(stores, epochs=2)
    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signalled(patch, step, number)
        with pytest.raises(leaves) as left:
            train(settings, tmp_path / "run")
    if number == signal.SIGTERM:
        assert left.value.code == 143
    assert signal.getsignal(number) is before
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert read_state(tmp_path / "run")["progress"]["step"] == step + 1
    train(settings, tmp_path / "run", resume=True)
    train(settings, tmp_path / "whole")
    assert same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def test_a_second_signal_stops_at_once(stores, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signalled(patch, 5, signal.SIGINT)
        signalled(patch, 5, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(config(stores), tmp_path / "run")
    assert read_state(tmp_path / "run") is None


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("damage", ["pickle", "truncated", "empty"])
def test_a_damaged_or_hostile_state_is_refused_and_never_executed(
    stores, finished, tmp_path, monkeypatch, damage
):
    run = tmp_path / "run"
    for name in ("state", "last"):
        (run / name).mkdir(parents=True)
    (run / "run.json").write_text((finished / "run.json").read_text())
    state = (finished / "state" / "last.ckpt").read_bytes()
    content = {"pickle": pickle.dumps(Hostile()), "truncated": state[:2000], "empty": b""}[damage]
    (run / "state" / "last.ckpt").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match=r"cannot be resumed from.*training\.start_from"):
        train(config(stores, epochs=1), run, resume=True)
    assert not (tmp_path / "executed").exists()
    # The trap works: an ordinary load springs it.
    if damage == "pickle":
        pickle.loads(content)  # noqa: S301
        assert (tmp_path / "executed").exists()


def test_a_full_disk_keeps_the_state_before_it(stores, tmp_path, monkeypatch):
    settings = config(stores, save_minutes=0.0)
    real = torch.save

    def full(state, path):
        real(state, path)
        if state["progress"]["step"] == 6:
            raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(FileError, match=r"no space left for .* MiB free.*make room"):
            train(settings, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "state").iterdir()] == ["last.ckpt"]
    assert read_state(tmp_path / "run")["progress"]["step"] == 5
    train(settings, tmp_path / "run", resume=True)
    train(settings, tmp_path / "whole")
    assert same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


@pytest.mark.parametrize("more", [{"epochs": 3}, {"epochs": 10_000, "cpu_minutes": 0.0}])
def test_a_finished_run_goes_on_when_there_is_more_to_do(stores, tmp_path, monkeypatch, more):
    """As long a run in two parts ends where the whole does: the rate is constant."""
    first = config(stores, epochs=2) if "epochs" in more and more["epochs"] == 3 else None
    first = first or config(stores, epochs=10_000, cpu_minutes=10 / 60)
    last = dataclasses.replace(first, training=dataclasses.replace(first.training, **more))
    if "cpu_minutes" in more:
        last = dataclasses.replace(
            last, training=dataclasses.replace(last.training, cpu_minutes=18 / 60)
        )
    with monkeypatch.context() as patch:
        FakeProcessor(patch)
        train(first, tmp_path / "run")
        done = read_state(tmp_path / "run")["progress"]["step"]
        train(last, tmp_path / "run", resume=True)
        assert read_state(tmp_path / "run")["progress"]["step"] == {24: 36, 20: 36}[done]
        train(last, tmp_path / "whole")
    pair = [outcome(tmp_path / name) for name in ("run", "whole")]
    assert same(pair[0]["state"], pair[1]["state"])
    assert load_checkpoint(tmp_path / "run" / "last").config == last


def test_lines_of_the_table_that_no_training_wrote_are_dropped(tmp_path):
    from crystorus.train.log import COLUMNS, METRICS, MetricsLog

    rest = "," * (len(COLUMNS) - 2)
    good = [f"1,0.5{rest}", f"3,1e-05{rest}"]
    other = [
        f"²,1{rest}",
        f"{'9' * 5000},1{rest}",
        "2,1",
        f"2,=1+1{rest}",
        f"2,{'x' * 200_000}\xff",
    ]
    text = "\n".join([",".join(COLUMNS), good[0], *other, good[1], f"9,1{rest}"])
    (tmp_path / METRICS).write_bytes(text.encode("latin-1"))
    MetricsLog(tmp_path, last_step=8).close()
    assert (tmp_path / METRICS).read_text().splitlines() == [",".join(COLUMNS), *good]


def test_a_state_cannot_set_rates_nor_count_backwards(stores, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    path = run / "state" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    for optimizer in state["optimizers"]:
        optimizer["param_groups"][0]["lr"] = -1e9
        if "betas" in optimizer["param_groups"][0]:
            optimizer["param_groups"][0]["betas"] = (5.0, 5.0)
    torch.save(state, path)
    train(config(stores, epochs=2), run, resume=True)
    for optimizer in state["optimizers"]:
        for one in optimizer["state"].values():
            if "step" in one:
                one["step"] = torch.tensor(-2747.0)
    torch.save(state, path)
    with pytest.raises(TrainingError, match="negative number of steps"):
        train(config(stores, epochs=3), run, resume=True)


def test_a_second_process_in_one_folder_is_refused(stores, finished):
    settings = config(stores, epochs=1)
    with (
        loop._claim(finished, settings, resume=True),
        pytest.raises(OutputError, match="is being written by another run"),
    ):
        train(settings, finished, resume=True)
    train(settings, finished, resume=True)


def test_a_run_that_failed_on_its_data_does_not_bind_the_corrected_command(stores, tmp_path):
    good = config(stores, epochs=1)
    for data in ({"validation": "nowhere.csv"}, {"train": str(stores / "train.extxyz"),
                                                 "validation": "nowhere.csv"}):  # fmt: skip
        wrong = dataclasses.replace(good, data=dataclasses.replace(good.data, **data))
        with pytest.raises(TrainingError, match=r"data\.validation"):
            train(wrong, tmp_path / "run")
    train(good, tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists(), "made of other data"


def test_a_run_killed_while_its_record_was_written_can_be_started_again(stores, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.77-ab12cd.part").write_text("{")
    (tmp_path / "run" / "run.json.tmp").write_text("{")
    train(config(stores, epochs=1), tmp_path / "run")
    assert not (tmp_path / "run" / ".run.json.77-ab12cd.part").exists()


def test_data_without_a_small_crystal_are_refused_in_one_sentence(stores, tmp_path):
    good = config(stores, epochs=1)
    none = dataclasses.replace(good, data=dataclasses.replace(good.data, max_atoms=0))
    with pytest.raises(
        TrainingError, match=r"data\.train has 0 crystals of at most 0 atoms.*raise data\.max"
    ):
        train(none, tmp_path / "run")
    train(good, tmp_path / "run")


@pytest.mark.parametrize("name", ["default", "paper", "smoke"])
def test_the_configurations_that_come_along_are_complete(request, name):
    path = request.config.rootpath / "configs" / f"{name}.toml"
    settings = load_config(path)
    assert settings.preset == ("paper" if name == "paper" else "default")
    json.dumps(config_to_dict(settings))


def test_the_paper_configuration_is_table_1(request):
    s = load_config(request.config.rootpath / "configs" / "paper.toml")
    t = s.training
    assert (t.optimizer, t.learning_rate, t.adam_beta2) == ("adam", 1e-3, 0.999)
    assert (t.batch_size, t.epochs, t.clip_norm, t.ema_decay) == (128, 512, 1.0, 0.995)
    assert (s.diffusion.steps, s.diffusion.cell_betas) == (100, (1e-5, 1e-1))
    assert s.diffusion.torus_betas == (1e-6, 2e-3)
    assert (s.network.neighbours, s.network.blocks, s.data.max_atoms) == (32, 3, 20)
    assert (t.loss_limit, t.decay, t.warmup_steps, t.batch_pairs) == (0.0, 0.0, 0, 0)


class FakeProcessor:
    """A processor clock that only training steps move: half a second each."""

    def __init__(self, monkeypatch):
        self.seconds = 100.0
        real = Training.backward

        def backward(training, *args):
            self.seconds += 0.5
            return real(training, *args)

        monkeypatch.setattr(Training, "backward", backward)
        monkeypatch.setattr("time.process_time", lambda: self.seconds)


def test_a_run_limited_in_cpu_time_spends_it_and_its_learning_rate_follows(
    stores, tmp_path, monkeypatch
):
    """20 steps of half a second in 10 s, however long they take on the wall."""
    settings = config(stores, epochs=1000, cpu_minutes=1 / 6, decay=1.0, log_every=1)
    with monkeypatch.context() as patch:
        FakeProcessor(patch)
        train(settings, tmp_path / "whole")
    card = read_card(tmp_path / "whole" / "last")["card"]
    assert (card["steps"], card["training_cpu_minutes"]) == (20, round(1 / 6, 3))
    with (tmp_path / "whole" / "metrics.csv").open() as stream:
        rates = [float(r["learning_rate"]) for r in csv.DictReader(stream) if r["learning_rate"]]
    full = settings.training.learning_rate
    assert rates == pytest.approx([full * (1 - n / 20) for n in range(20)], rel=1e-6)
    with monkeypatch.context() as patch:
        FakeProcessor(patch)
        signalled(patch, 6, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "run")
    with monkeypatch.context() as patch:
        FakeProcessor(patch)
        train(settings, tmp_path / "run", resume=True)
        assert same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))
        train(settings, tmp_path / "run", resume=True)  # nothing is left to do
    assert same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "spawn"])
def test_two_processes_train_as_one(stores, tmp_path, launcher):
    import subprocess
    import sys

    program = tmp_path / "program.py"
    program.write_text(
        "import sys; from pathlib import Path\n"
        "from crystorus.config import config_from_dict\n"
        "from crystorus.train.loop import train\n"
        "import json\n"
        "if __name__ == '__main__':\n"
        "    config = config_from_dict(json.loads(Path(sys.argv[1]).read_text()))\n"
        "    train(config, Path(sys.argv[2]))\n"
    )
    settings = config(stores, devices=2)
    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(settings)))
    start = [sys.executable]
    if launcher == "torchrun":
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*start, program, tmp_path / "config.json", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    card = read_card(tmp_path / "run" / "last")["card"]
    assert card["processes"] == 2
    assert (card["steps"], card["crystals_seen"]) == (12, 96)


def test_a_fraction_of_the_crystals_is_kept_for_validation(stores, tmp_path):
    settings = load_config(
        Path(__file__).parents[2] / "configs/smoke.toml",
        [f"data.train={stores}/train.store", "data.validation=0.25", "training.epochs=1"],
    )
    train(settings, tmp_path / "run")
    card = read_card(tmp_path / "run" / "last")["card"]
    assert [card["data"][name]["crystals"] for name in ("train", "validation")] == [36, 12]
    kept, again = (loop._open_data(tmp_path, settings) for _ in range(2))
    parts = [set(kept[name].indices.tolist()) for name in ("train", "validation")]
    assert parts[0] | parts[1] == set(range(48))
    assert not parts[0] & parts[1]
    assert again["validation"].indices.tolist() == kept["validation"].indices.tolist()


def test_a_fraction_that_leaves_too_little_to_train_on_is_what_is_to_be_lowered(stores, tmp_path):
    settings = config(stores)
    data = dataclasses.replace(settings.data, validation="0.95")
    expected = r"data\.train has 2 crystals .+ besides the 0\.95 .+ lower data\.validation"
    with pytest.raises(TrainingError, match=expected):
        loop._open_data(tmp_path, dataclasses.replace(settings, data=data))


@pytest.mark.parametrize("value", ["1.0", "-0.5", "0.0", "3", "nan"])
def test_no_other_number_is_a_fraction(stores, tmp_path, value):
    settings = config(stores)
    data = dataclasses.replace(settings.data, validation=value)
    with pytest.raises(TrainingError, match="give a fraction above 0 and below 1, or a file"):
        train(dataclasses.replace(settings, data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_whole_number_for_validation_is_told_like_a_fraction():
    settings = load_config(Path(__file__).parents[2] / "configs/smoke.toml", ["data.validation=1"])
    with pytest.raises(TrainingError, match="validation = 1: give a fraction above 0"):
        check_settings(settings)
