"""Command line: files in, a table on screen, JSON on request, progress on standard error."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from crystal_fidelity import __version__
from crystal_fidelity.cli_studies import study_app
from crystal_fidelity.compare import (
    DEFAULT_METRICS,
    METRICS,
    Comparison,
    Settings,
    feature_scores,
    parse_metrics,
)
from crystal_fidelity.compare import compare as compare_sets
from crystal_fidelity.featurizers import load_features, save_features
from crystal_fidelity.files import file_digest
from crystal_fidelity.matching import MatchProtocol
from crystal_fidelity.models import DISTANCE_NAMES, FeaturizerName, make_featurizer
from crystal_fidelity.reading import read_structures
from crystal_fidelity.report import failure_lines, print_scores, write_json
from crystal_fidelity.serving import serve as serve_commands
from crystal_fidelity.structures import Entry, ReadFailure
from crystal_fidelity.table import FIELDS, structure_rows
from crystal_fidelity.validity import structural_validity

app = typer.Typer(
    help="How faithful generated crystals are to a reference set.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

weights_app = typer.Typer(help="Published ALIGNN weights.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
app.add_typer(study_app, name="study")

Generated = Annotated[Path, typer.Argument(help="extxyz, CIF, folder of CIF, CSV(.gz) or ASE db")]
Reference = Annotated[Path, typer.Argument(help="the same formats")]
Json = Annotated[Path | None, typer.Option("--json", help="write everything here")]
Workers = Annotated[int, typer.Option(help="processes for reading and matching")]
BestOf = Annotated[int, typer.Option(help="consecutive generated candidates per reference")]
Timeout = Annotated[
    float | None, typer.Option(help="seconds per pair; longer ones are reported undecided")
]
Seed = Annotated[int, typer.Option(help="of random splits and baselines")]
FeaturizerOption = Annotated[FeaturizerName, typer.Option(help="network of the Fréchet distance")]
Weights = Annotated[
    Path | None, typer.Option(help="weights of the featurizer, where it needs some")
]
Cache = Annotated[Path | None, typer.Option(help="folder of cached network outputs")]
CORES = min(2, os.cpu_count() or 1)


@contextmanager
def _stages() -> Iterator["Stages"]:
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Stages(progress)


class Stages:
    """What is being done, on standard error."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def __call__(self, stage: str) -> None:
        """Name the stage now running."""
        self._progress.update(self._task, description=stage)


def _read(path: Path, what: str, workers: int, stages: Stages) -> list[Entry]:
    stages(f"reading {what} structures from {path}")
    return read_structures(path, workers=workers)


def _say_failures(entries: list[Entry], what: str) -> None:
    console = Console(stderr=True, style="yellow")
    for line in failure_lines(entries, what):
        console.print(line, markup=False, highlight=False)


def _provenance(**sides: tuple[Path, list[Entry]]) -> dict[str, object]:
    files: dict[str, object] = {
        side: {
            "path": str(path),
            "structures": len(entries),
            "sha256": file_digest(path) if path.is_file() else None,
            "unreadable": [
                {"name": e.name, "reason": e.reason} for e in entries if isinstance(e, ReadFailure)
            ],
        }
        for side, (path, entries) in sides.items()
    }
    return {"crystal_fidelity": __version__, "files": files}


def _report(
    result: Comparison, settings: Settings, sides: dict[str, tuple[Path, list[Entry]]]
) -> dict[str, object]:
    """Return everything for JSON: sources, settings, scores, and a record of each structure."""
    rows = structure_rows(sides["generated"][1], result)
    return _provenance(**sides) | {
        "settings": asdict(settings),
        "scores": [score.as_dict() for score in result.scores],
        "not_computed": result.not_computed,
        "structures": [dict(zip(FIELDS, row, strict=True)) for row in rows],
    }


def _fact(path: Path, entries: list[Entry]) -> str:
    unread = sum(isinstance(entry, ReadFailure) for entry in entries)
    text = f"{path.name}: {len(entries)} structures, {unread} unreadable"
    return f"{text}, SHA-256 {file_digest(path)[:16]}…" if path.is_file() else text


def _check_writable(*paths: Path | None) -> None:
    """Refuse a file that cannot be written before the work, not after it."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ValueError(f"{path} cannot be written: name a file in a folder that exists")


def _say_not_computed(missing: dict[str, str]) -> None:
    console = Console(stderr=True, style="red")
    for metric, reason in missing.items():
        console.print(f"not computed: {metric}: {reason}", markup=False, highlight=False)
    if missing:
        raise typer.Exit(3)


@app.command()
def compare(
    generated: Generated,
    reference: Reference,
    metrics: Annotated[
        str, typer.Option(help=f"comma-separated, of {', '.join(METRICS)}")
    ] = ",".join(DEFAULT_METRICS),
    energy: Annotated[
        str, typer.Option(help="chgnet, an ASE calculator's module:factory, or file:KEY")
    ] = "chgnet",
    references: Annotated[
        Path | None, typer.Option(help="elemental references (JSON) of an ASE calculator")
    ] = None,
    featurizer: FeaturizerOption = "chgnet",
    weights: Weights = None,
    cache: Cache = None,
    known: Annotated[
        Path | None, typer.Option(help="set that novelty is judged against [default: REFERENCE]")
    ] = None,
    hull_key: Annotated[
        str, typer.Option(help="number of the generated structures that S.U.N. reads, eV/atom")
    ] = "e_above_hull",
    coverage_scale: Annotated[
        str, typer.Option(help="compositions standardised by cdvae, reference, or a JSON file")
    ] = "cdvae",
    protocol: Annotated[MatchProtocol, typer.Option(help="which pairs may match")] = "all",
    best_of: BestOf = 1,
    workers: Workers = CORES,
    timeout: Timeout = None,
    seed: Seed = 0,
    json: Json = None,
    html: Annotated[Path | None, typer.Option("--html", help="write a report here")] = None,
) -> None:
    """Score GENERATED against REFERENCE; exit status 3 if a metric could not be computed."""
    _check_writable(json, html)
    settings = Settings(
        metrics=parse_metrics(metrics),
        energy=energy,
        references=references,
        featurizer=featurizer,
        weights=weights,
        cache=cache,
        known=known,
        hull_key=hull_key,
        coverage_scale=coverage_scale,
        match_protocol=protocol,
        best_of=best_of,
        workers=workers,
        timeout_s=timeout,
        seed=seed,
    )
    with _stages() as stages:
        left = _read(generated, "generated", workers, stages)
        right = _read(reference, "reference", workers, stages)
        result = compare_sets(left, right, settings, stages)
    _say_failures(left, "generated")
    _say_failures(right, "reference")
    print_scores(result.scores, title=f"{generated} against {reference}")
    if html:
        from crystal_fidelity.html import write_report

        facts = {"generated": _fact(generated, left), "reference": _fact(reference, right)}
        write_report(html, f"{generated.name} against {reference.name}", left, result, facts)
    if json:
        sides = {"generated": (generated, left), "reference": (reference, right)}
        write_json(json, _report(result, settings, sides))
    _say_not_computed(result.not_computed)


@app.command()
def validity(generated: Generated, workers: Workers = CORES, json: Json = None) -> None:
    """Say which structures of GENERATED have no collision, self-images included."""
    _check_writable(json)
    with _stages() as stages:
        entries = _read(generated, "generated", workers, stages)
        stages("validity")
        result = structural_validity(entries)
    _say_failures(entries, "generated")
    print_scores(result.scores(), title=str(generated))
    console = Console(stderr=True)
    invalid = [(e.name, r) for e, r in zip(entries, result.reasons, strict=True) if r]
    for name, reason in invalid[:10]:
        console.print(f"invalid: {name}: {reason}", markup=False, highlight=False)
    if len(invalid) > 10:
        console.print(f"and {len(invalid) - 10} more; --json names all", highlight=False)
    if json:
        record = _provenance(generated=(generated, entries))
        record["scores"] = [score.as_dict() for score in result.scores()]
        record["structures"] = [
            {"name": e.name, "valid": not r, "reason": r, "min_distance_angstrom": float(d)}
            for e, r, d in zip(entries, result.reasons, result.min_distance, strict=True)
        ]
        write_json(json, record)


@app.command()
def match(
    generated: Generated,
    reference: Reference,
    protocol: Annotated[MatchProtocol, typer.Option(help="which pairs may match")] = "all",
    best_of: BestOf = 1,
    workers: Workers = CORES,
    timeout: Timeout = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Match the i-th of GENERATED with the i-th of REFERENCE by StructureMatcher."""
    _check_writable(json)
    settings = Settings(
        metrics=("match",),
        match_protocol=protocol,
        best_of=best_of,
        workers=workers,
        timeout_s=timeout,
        seed=seed,
    )
    with _stages() as stages:
        left = _read(generated, "generated", workers, stages)
        right = _read(reference, "reference", workers, stages)
        result = compare_sets(left, right, settings, stages)
    _say_failures(left, "generated")
    _say_failures(right, "reference")
    print_scores(result.scores, title=f"{generated} against {reference}")
    if json and result.match:
        record = _provenance(generated=(generated, left), reference=(reference, right))
        record["scores"] = [score.as_dict() for score in result.scores]
        record["pairs"] = [
            {
                "reference": e.name,
                "status": o.status,
                "rms": o.rms,
                "reason": o.reason,
                "candidate": k,
            }
            for e, o, k in zip(right, result.match.outcomes, result.match.chosen, strict=True)
        ]
        write_json(json, record)


@app.command()
def features(
    structures: Generated,
    out: Annotated[Path, typer.Argument(help=".npz to write")],
    featurizer: FeaturizerOption = "chgnet",
    weights: Weights = None,
    cache: Cache = None,
    workers: Workers = CORES,
) -> None:
    """Compute the features of STRUCTURES and write them with the network's identity to OUT."""
    if out.suffix != ".npz":
        raise ValueError(f"{out}: features are written to .npz")
    _check_writable(out)
    with _stages() as stages:
        entries = _read(structures, "given", workers, stages)
        network = make_featurizer(featurizer, weights=weights, cache=cache, on_progress=stages)
        found = network.features(entries)
    save_features(out, found)
    console = Console(stderr=True)
    console.print(f"{len(found)} of {len(entries)} structures: {found.identity}", highlight=False)
    for name, reason in found.failures[:10]:
        console.print(f"no features: {name}: {reason}", markup=False, highlight=False)


@app.command()
def frechet(
    generated: Annotated[Path, typer.Argument(help="features (.npz) of the generated set")],
    reference: Annotated[Path, typer.Argument(help="features (.npz) of the reference set")],
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Fréchet and kernel distance of two feature files, with floor and bias correction."""
    _check_writable(json)
    left, right = load_features(generated), load_features(reference)
    name = next((n for n in DISTANCE_NAMES.values() if _stem(n) in left.identity.name), "Fréchet")
    scores = feature_scores(left, right, name=name, settings=Settings(seed=seed))
    print_scores(scores, title=f"{generated} against {reference}")
    if json:
        write_json(json, {"scores": [score.as_dict() for score in scores]})


@weights_app.command("fetch")
def fetch_published(
    name: Annotated[str, typer.Argument(help="mp_e_form_alignn (mp_e_form_alignnn is the same)")],
    out: Annotated[Path, typer.Argument(help=".safetensors to write")],
    sha256: Annotated[str | None, typer.Option(help="digest the download must have")] = None,
) -> None:
    """Download published ALIGNN weights and keep them as safetensors with both digests."""
    from crystal_fidelity.weights import convert_weights, fetch_weights

    archive = out.with_suffix(".zip")
    with _stages() as stages:
        stages(f"downloading {name}")
        found = fetch_weights(name, archive, sha256=sha256)
        digest = convert_weights(archive, out)
    Console().print(f"download SHA-256 {found}\ntensors  SHA-256 {digest}\n{out}", highlight=False)


@weights_app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(help="official .zip or checkpoint .pt")],
    out: Annotated[Path, typer.Argument(help=".safetensors to write")],
) -> None:
    """Turn a downloaded checkpoint into safetensors without executing what it holds."""
    from crystal_fidelity.weights import convert_weights

    Console().print(f"tensors SHA-256 {convert_weights(source, out)}\n{out}", highlight=False)


@app.command()
def serve() -> None:
    """Run commands from standard input, a JSON list of words per line, in this one process."""
    serve_commands(app, sys.stdin, sys.stdout)


def _stem(distance_name: str) -> str:
    return distance_name.split()[1]


def main() -> None:
    """Run the command line; expected errors are one sentence, not a traceback."""
    # Read when torch is loaded: threads that spin for long while they wait crawl on a busy machine.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app(standalone_mode=True)
    except (ValueError, KeyError, OSError, ImportError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        Console(stderr=True, style="red").print(f"error: {message}", markup=False, highlight=False)
        raise SystemExit(2) from None
