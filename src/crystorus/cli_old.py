"""The command line: names, help texts and nothing else. Heavy imports wait for their command."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from crystorus import cli_paper
from crystorus.cli_choices import DatasetName

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
    # Threads wait for each other spinning, five milliseconds if nobody says otherwise: on a machine
    # with other work a hundred times as slow as a short spin, which costs nothing on an idle one.
    # Read when torch is loaded, which is later.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Notes on operations of non-primitive cells say nothing to the reader of a table.
    logging.getLogger("moyo").setLevel(logging.ERROR)
    app(prog_name="crystorus")


def _command(_after: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Errors are put into words by the command line in front of this one."""
    return lambda function: function


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
    from crystorus.train.loop import train as run_training

    run_training(settings, folder, resume=resume)


@app.command()
@_command("interrupted")
def info(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A checkpoint folder.", show_default="shipped")
    ] = None,
) -> None:
    """Show a checkpoint's card: data, budget, losses, figures."""
    from crystorus.checkpoint import SHIPPED, check_weights, read_card, read_scorer_card
    from crystorus.terminal import show_card

    folder = checkpoint or SHIPPED
    card = read_card(folder)
    check_weights(folder, card)
    show_card(str(checkpoint or "The shipped checkpoint"), card)
    judge = read_scorer_card(folder)
    if judge is not None:
        show_card("Its judge, for --candidates", judge)


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


for _stage in (cli_paper.paper,):
    app.command()(
        _command("interrupted; finished work is kept, the same command goes on from it")(_stage)
    )


if __name__ == "__main__":
    main()
