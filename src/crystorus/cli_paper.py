"""`crystorus paper`: names, help texts and nothing else."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class What(StrEnum):
    """The tables and figures by name."""

    table2 = "table2"
    table3 = "table3"
    table4 = "table4"
    figure1 = "figure1"
    figure2 = "figure2"
    figure3 = "figure3"
    figure4 = "figure4"
    figure5 = "figure5"
    figure6 = "figure6"
    latent = "latent"
    times = "times"
    all = "all"
    checkpoint = "checkpoint"
    page = "page"
    publish = "publish"


class BudgetName(StrEnum):
    """The budgets by name."""

    smoke = "smoke"
    cpu = "cpu"
    full = "full"


def paper(
    what: Annotated[
        What,
        typer.Argument(
            help="What to measure; checkpoint: all that shows the trained model; page and publish "
            "write the page of results."
        ),
    ],
    budget: Annotated[
        BudgetName, typer.Option(help="Minutes, an hour, or the paper's own settings.")
    ] = BudgetName.smoke,
    out: Annotated[
        Path, typer.Option(help="Folder of the experiment; an interrupted one goes on there.")
    ] = Path("runs/paper"),
    data: Annotated[
        Path | None,
        typer.Option(help="Crystals to train on.", show_default="prototypes, for smoke only"),
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Crystals that choose the checkpoint.")
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            help="Crystals whose compositions are sampled.", show_default="those of --validation"
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds of the trainings, 0,1.", show_default="the budget's")
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(help="Rows of Table 4, paper-a,default-ode.", show_default="all"),
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Another system's crystals, NAME=FILE; repeatable.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A trained model.", show_default="shipped")
    ] = None,
    alignn_weights: Annotated[
        Path | None, typer.Option(help="ALIGNN's weights, for FAD; see crystal-fidelity weights.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    docs: Annotated[
        Path, typer.Option(help="Folder of the page; its paper/ holds the results.")
    ] = Path("docs"),
) -> None:
    """Measure the paper's tables and figures again, beside what it printed."""
    from crystorus.reproduction.command import (
        EXPERIMENTS,
        OF_CHECKPOINT,
        PaperOrder,
        carry_out,
        make_page,
        publish_results,
    )
    from crystorus.reproduction.inputs import Sources

    if what is What.page:
        make_page(docs)
        return
    if what is What.publish:
        publish_results(out, docs)
        return
    chosen = tuple(name for name in EXPERIMENTS if what.value in ("all", name))
    if what is What.checkpoint:
        chosen = OF_CHECKPOINT
    carry_out(
        PaperOrder(
            experiments=chosen,
            budget=budget.value,
            out=out,
            sources=Sources(data, validation, held_out),
            seeds=seeds,
            rows=rows,
            checkpoint_row=what is What.checkpoint,
            baselines=tuple(baseline or ()),
            checkpoint=checkpoint,
            alignn_weights=alignn_weights,
            device=device,
        )
    )
