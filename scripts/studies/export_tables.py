"""Tables of partitions that were taken away: pipelines, fidelity, models of compilers."""

from __future__ import annotations

from collections.abc import Sequence

import fidelity_figures
import replication as replication_study
import stablehlo_check
from table_parts import Row, markdown, number, percent, raw


def buffers() -> str:
    """What finite buffers leave of 1/T, graph by graph."""
    lines = []
    for row in raw("buffers")["rows"]:
        if "why" not in row:
            line = [row["graph"], row["mcm"], f"{row['nodes']:,}", str(row["chips_used"])]
            line += [percent(row[f"share_{b}"], 1) for b in (1, 2, 4, 8)]
            lines.append([*line, *(number(row[f"near_{b}"], 0, none="never") for b in (2, 8))])
    shares = " | ".join(f">{b} slot{'s' * (b > 1)}" for b in (1, 2, 4, 8))
    return markdown(
        f"graph | module | >nodes | >chips | {shares} | >within 5%, 2 slots | >8 slots", lines
    )


def fidelity(rows: Sequence[Row]) -> str:
    """Predicted against measured bottlenecks: of all models, then of each; and where it fails."""
    judged = [fidelity_figures.Judged.of(row) for row in rows if row["part"] == "judged"]
    summary, models, failures = [], [], []
    for name, what in fidelity_figures.PREDICTIONS.items():
        found = fidelity_figures.overall(judged, name)
        figures = (number(found.pearson, 3), number(found.spearman, 3))
        errors = (percent(found.error, 1), percent(found.scaled, 1))
        summary.append([f"{name}: {what}", str(found.count), *figures, *errors])
    for model in judged:
        each = [
            fidelity_figures.fidelity(model.predicted_s[name], model.measured_s)
            for name in fidelity_figures.PREDICTIONS
        ]
        cells = [f"{number(one.pearson, 3)}, {percent(one.error, 1)}" for one in each]
        ceiling = f"{number(model.ceiling.pearson, 3)}, {percent(model.ceiling.error, 1)}"
        count = str(len(model.measured_s))
        models.append([model.model, model.runtime, f"{model.nodes:,}", count, *cells, ceiling])
        failures += [
            [
                *(model.model, one.operator, str(one.nodes), one.prediction),
                *(number(one.predicted_s, 1, 1e6), number(one.found_s, 1, 1e6)),
                percent(one.share, 1),
            ]
            for prediction in ("launch", "profiled")
            for one in [f for f in model.failures if f.prediction == prediction][:2]
        ]
    header = "prediction | >partitions | >Pearson | >Spearman | >error | >error, scaled"
    columns = " | ".join(f">{name}" for name in fidelity_figures.PREDICTIONS)
    return "\n".join(
        [
            markdown(header, summary),
            markdown(f"model | runtime | >nodes | >partitions | {columns} | >itself", models),
            markdown(
                "model | operator | >nodes | prediction | >predicted, us | >in stages, us"
                " | >difference / model",
                failures,
            ),
        ]
    )


def real_pipeline() -> str:
    """Two real stages beside the simulation of their seconds."""
    return markdown(
        "model | >stage 0, ms | >stage 1, ms | >real, inferences/s | >simulated | >ratio",
        [
            [
                row["graph"],
                *(f"{1e3 * seconds:.2f}" for seconds in row["alone_s"]),
                f"{row['real_per_s']:.2f}",
                f"{row['simulated_per_s']:.2f}",
                f"{row['real_per_s'] / row['simulated_per_s']:.3f}",
            ]
            for row in raw("real-pipeline")["rows"]
        ],
    )


def replication() -> str:
    """What several chips for one stage would bring, over the mean load."""
    return markdown(
        "module | >pairs | >best known | >one chip a stage | >at most two | >any number | "
        ">two better | >any better",
        replication_study.table_rows(raw("replication")["rows"]),
    )


def stablehlo() -> str:
    """The graphs of `from_stablehlo` over those of `from_jax`, function by function."""
    return markdown(
        "function | >nodes | >FLOPs, fused | >bytes, fused | >products | >weights | "
        "more FLOPs | fewer",
        stablehlo_check.table_rows(raw("stablehlo")["rows"]),
    )
