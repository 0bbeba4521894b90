"""The command line: names, help texts and nothing else. Heavy imports wait for their command."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from crystorus import cli_hull, cli_paper
from crystorus.cli_choices import (
    OWN,
    Checkpoint,
    DatasetName,
    Device,
    Library,
    PrecisionName,
    QualityName,
    SamplerName,
    Seed,
    Start,
    Steps,
)

app = typer.Typer(
    name="crystorus",
    help="Crystals from a composition.",
    epilog="Try: crystorus sample LiFeO2 --z 1,2,4 --n 8 --out out/LiFeO2",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(no_args_is_help=True, help="Fetch and prepare structures.")
app.add_typer(data_app, name="data")
templates_app = typer.Typer(no_args_is_help=True, help="Known crystals to start from.")
app.add_typer(templates_app, name="templates")


@dataclass
class _State:
    """What is said before the name of a command."""

    debug: bool = False


_STATE = _State()


def main() -> None:
    """Run the command line."""
    # Notes on operations of non-primitive cells say nothing to the reader of a table.
    logging.getLogger("moyo").setLevel(logging.ERROR)
    app(prog_name="crystorus")


def _command(after_interrupt: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """End a command with one sentence instead of a traceback, whatever goes wrong inside."""

    def guard(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **options: Any) -> None:
            from crystorus.terminal import plain_errors

            with plain_errors(debug=_STATE.debug, after_interrupt=after_interrupt):
                function(*args, **options)

        return guarded

    return guard


def _show_version(wanted: bool | None) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"crystorus {version('crystorus')}")
        except PackageNotFoundError:
            typer.echo("crystorus (not installed)")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool | None,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = None,
) -> None:
    _STATE.debug = debug


@app.command()
@_command("interrupted; finished crystals are kept, the same command goes on from them")
def sample(
    formulas: Annotated[
        list[str] | None, typer.Argument(metavar="FORMULA", help='As in LiFeO2 "Ca(OH)2".')
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the run; an interrupted run goes on there.")
    ] = Path("out"),
    z: Annotated[
        str | None, typer.Option(help="Formula units per cell, as in 1,2,4.", show_default="1")
    ] = None,
    n: Annotated[int, typer.Option(help="Crystals per composition.")] = 1,
    seed: Seed = 0,
    like: Annotated[
        Path | None,
        typer.Option(help="Compositions of a CSV, of CIFs or of extxyz.", rich_help_panel="What"),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(help="Every composition of a system: Li-Fe-O.", rich_help_panel="What"),
    ] = None,
    max_atoms: Annotated[
        int | None,
        typer.Option(help="Atoms per cell of --system, at most.", rich_help_panel="What"),
    ] = None,
    large: Annotated[
        bool,
        typer.Option("--large", help="Cells beyond training's.", rich_help_panel="What"),
    ] = False,
    quality: Annotated[
        QualityName | None,
        typer.Option(
            help="fast: 12 steps from noise, best: 120, default: the checkpoint's; instead of the "
            "three options below.",
            show_default=OWN,
            rich_help_panel="Sampling",
        ),
    ] = None,
    sampler: Annotated[
        SamplerName | None,
        typer.Option(help="How noise is removed.", show_default=OWN, rich_help_panel="Sampling"),
    ] = None,
    steps: Steps = None,
    anti_annealing: Annotated[
        float | None,
        typer.Option(
            help="Extra drift at low noise.", show_default=OWN, rich_help_panel="Sampling"
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    start: Start = None,
    library: Library = None,
    level: Annotated[
        float | None,
        typer.Option(
            help="How far back towards noise, 0 to 1.",
            show_default="0.2",
            rich_help_panel="Start",
        ),
    ] = None,
    noised: Annotated[
        bool,
        typer.Option(
            "--noised",
            help="Add the noise of that level; without it symmetry is kept.",
            rich_help_panel="Start",
        ),
    ] = False,
    new_only: Annotated[
        bool,
        typer.Option(
            "--new-only",
            help="Leave out crystals that the library knows at this composition.",
            rich_help_panel="Start",
        ),
    ] = False,
    device: Device = "cpu",
    batch_atoms: Annotated[
        int, typer.Option(help="Atoms per batch; changes speed only.", rich_help_panel="Sampling")
    ] = 1024,
    workers: Annotated[
        int,
        typer.Option(help="Processes; as many as cores is fastest.", rich_help_panel="Sampling"),
    ] = 1,
    precision: Annotated[
        PrecisionName | None,
        typer.Option(
            help="Of the products; auto is bf16 where that is fast.",
            show_default="the checkpoint's, fp32",
            rich_help_panel="Sampling",
        ),
    ] = None,
    symprec: Annotated[
        float, typer.Option(help="Symmetry tolerance in Å.", rich_help_panel="Files")
    ] = 0.1,
    keep_trajectory: Annotated[
        bool, typer.Option("--keep-trajectory", help="Every step too.", rich_help_panel="Files")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another run.", rich_help_panel="Files")
    ] = False,
) -> None:
    """Make crystals of given compositions.

    Writes crystals.extxyz, a CIF each (as made, and symmetrised), table.csv and run.json.
    """
    from crystorus.generation.command import SampleOrder, carry_out

    carry_out(
        SampleOrder(
            formulas=tuple(formulas or ()),
            units=z,
            like=like,
            system=system,
            max_atoms=max_atoms,
            large=large,
            n=n,
            seed=seed,
            sampler=sampler.value if sampler else None,
            steps=steps,
            anti_annealing=anti_annealing,
            quality=quality.value if quality else None,
            precision=precision.value if precision else None,
            workers=workers,
            checkpoint=checkpoint,
            device=device,
            batch_atoms=batch_atoms,
            symprec=symprec,
            keep_trajectory=keep_trajectory,
            overwrite=overwrite,
            out=out,
            start=start.value if start else None,
            library=library,
            level=level,
            noised=noised,
            new_only=new_only,
        )
    )


@app.command()
@_command("interrupted; finished crystals are kept, the same command goes on from them")
def refine(
    files: Annotated[list[Path], typer.Argument(help="CIF, extxyz, POSCAR, CSV or ASE database.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("out/refined"),
    level: Annotated[float, typer.Option(help="How far back towards noise, 0 to 1.")] = 0.2,
    noised: Annotated[
        bool, typer.Option("--noised", help="Add that noise; without it symmetry is kept.")
    ] = False,
    n: Annotated[int, typer.Option(help="Crystals per structure, with --noised.")] = 1,
    hold: Annotated[
        str | None, typer.Option(help="Atoms that stay: Li,O or places in the file, 0,1,2.")
    ] = None,
    hold_cell: Annotated[bool, typer.Option("--hold-cell", help="Keep the cell.")] = False,
    seed: Annotated[int, typer.Option(help="Same seed, same crystals.")] = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A trained model.", show_default="shipped")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    symprec: Annotated[float, typer.Option(help="Symmetry tolerance in Å.")] = 0.1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another run in the folder.")
    ] = False,
) -> None:
    """Repair or perturb given structures.

    Writes what `sample` writes; `origin` in the table says whether each is still the structure
    it was.
    """
    from crystorus.generation.command import refine as carry_out
    from crystorus.generation.refining import RefineOrder

    carry_out(
        RefineOrder(
            files=tuple(files),
            out=out,
            level=level,
            noised=noised,
            hold=hold,
            hold_cell=hold_cell,
            n=n,
            seed=seed,
            checkpoint=checkpoint,
            device=device,
            symprec=symprec,
            overwrite=overwrite,
        )
    )


@app.command()
@_command("interrupted; the state is saved, the same command with --resume goes on from it")
def train(
    config: Annotated[Path, typer.Argument(help="A TOML file, as in configs/.")],
    folder: Annotated[Path, typer.Argument(help="Where checkpoints and logs go.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="As in diffusion.steps=25.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")
    ] = False,
) -> None:
    """Train a model."""
    from crystorus.config import load_config

    settings = load_config(config, overrides or [])
    from crystorus.train import train as run_training

    run_training(settings, folder, resume=resume)


@app.command()
@_command("interrupted")
def info(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A checkpoint folder.", show_default="shipped")
    ] = None,
) -> None:
    """Show a checkpoint's card: data, budget, losses, figures."""
    from crystorus.checkpoint import SHIPPED, check_weights, read_card
    from crystorus.terminal import show_card

    folder = checkpoint or SHIPPED
    card = read_card(folder)
    check_weights(folder, card)
    show_card(str(checkpoint or "The shipped checkpoint"), card)


@data_app.command("get")
@_command("interrupted; the same command goes on where it stopped")
def data_get(
    name: Annotated[DatasetName, typer.Argument(help="The data set.")],
    folder: Annotated[Path, typer.Option(help="Where its files go.")] = Path("data/mp-20"),
    split: Annotated[
        list[str] | None,
        typer.Option(help="train, val or test; can be repeated.", show_default="train, val"),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Another copy.", show_default="the CDVAE release")
    ] = None,
) -> None:
    """Download a data set, going on where a download broke off."""
    from crystorus.data.mp20 import get_mp20
    from crystorus.terminal import download_progress

    with download_progress() as progress:
        files = get_mp20(folder, splits=split or ["train", "val"], base_url=url, progress=progress)
    for file in files:
        typer.echo(file)


@data_app.command("build")
@_command("interrupted; nothing was written")
def data_build(
    source: Annotated[Path, typer.Argument(help="CSV, CIFs, extxyz, POSCAR or ASE database.")],
    store: Annotated[Path, typer.Argument(help="The file to write.")],
    workers: Annotated[int, typer.Option(help="Processes that parse.")] = 1,
) -> None:
    """Read, reduce and validate structures into one file to train on."""
    from crystorus.data.store import build_store
    from crystorus.terminal import counter, show_store

    with counter("reading") as progress:
        built = build_store(source, store, n_workers=workers, progress=progress)
    show_store(store, len(built), built.skipped)


@templates_app.command("build")
@_command("interrupted; nothing was written")
def templates_build(
    source: Annotated[Path, typer.Argument(help="A store, CSV, CIFs, extxyz or ASE database.")],
    library: Annotated[Path, typer.Argument(help="The file to write.")],
    workers: Annotated[int, typer.Option(help="Processes that parse.")] = 1,
) -> None:
    """Make a library of known crystals for sample --start templates."""
    from crystorus.templates.library import build_library
    from crystorus.terminal import counter, show_store

    with counter("reading") as progress:
        built = build_library(source, library, n_workers=workers, progress=progress)
    show_store(library, len(built), built.skipped)


for _stage in (cli_hull.hull, cli_hull.relax, cli_hull.rank, cli_paper.paper):
    app.command()(
        _command("interrupted; finished work is kept, the same command goes on from it")(_stage)
    )


if __name__ == "__main__":
    main()
