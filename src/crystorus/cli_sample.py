"""`crystorus sample` and `crystorus refine` on the command line: names and help, nothing else."""

from pathlib import Path
from typing import Annotated

import typer

from crystorus.cli_choices import (
    OWN,
    Candidates,
    Checkpoint,
    Device,
    Library,
    PrecisionName,
    Quality,
    SamplerName,
    Seed,
    Start,
    Steps,
)


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
    quality: Quality = None,
    candidates: Candidates = 1,
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
    from crystorus.sample.command import SampleOrder, carry_out

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
            candidates=candidates,
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
    from crystorus.sample.command import refine as carry_out
    from crystorus.sample.refining import RefineOrder

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
