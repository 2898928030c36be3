"""Test AUC over seeds: Complete Journey at ε = 1, 3, 8; Hillstrom; both by lot among partners.

Hyperparameters are fixed here; docs/benchmarks.md says how they were chosen. The central-noise
references come from a run on other software and features; they are printed to compare with, not to
be met to the digit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.machine import describe
from dovetail.agreement.request import ModelSpec
from dovetail.privacy.accountant import calibrate_noise_multiplier
from dovetail.simulation import complete_journey
from dovetail.simulation.comparison import cells, run_cell
from dovetail.simulation.demo import TRAINING
from dovetail.simulation.ground import open_ground
from dovetail.simulation.preparing import prepare_ground
from dovetail.simulation.results import ALL, Comparison, Estimate, estimate, select
from dovetail.simulation.running import Progress, run_study
from dovetail.simulation.study import Partition, Study, StudyData, StudyPrivacy, Training
from dovetail.simulation.study_result import StudyResult, shown

REFERENCES = {1.0: 0.806, 3.0: 0.818, 8.0: 0.820, None: 0.825}
HILLSTROM_LEAST = 0.645
HEADS = "partners   ε   all by each     shared          one company     no privacy"
HILLSTROM_TRAINING = Training(
    model=ModelSpec("logistic"),
    rounds=100,
    sampling_prob=0.05,
    l2_clip_norm=1.0,
    learning_rate=0.3,
    momentum=0.9,
)


def journey(seeds: int) -> Study:
    """The demo's study."""
    return Study(
        name="Complete Journey",
        data=StudyData(dataset="complete_journey"),
        partition=Partition(
            kind="column",
            column=complete_journey.PARTNER_COLUMN,
            partners=tuple(complete_journey.PARTNERS.items()),
        ),
        training=TRAINING,
        privacy=StudyPrivacy(epsilons=(1.0, 3.0, 8.0), delta=1e-4, protection="distributed"),
        seeds=tuple(range(seeds)),
    )


def split(seeds: int, partners: int) -> Study:
    """The demo's households shared out by lot to so many partners of about one size."""
    names = tuple((f"p{number:02}", ()) for number in range(partners))
    return Study(
        name=f"{partners} partners",
        data=StudyData(dataset="complete_journey"),
        partition=Partition(kind="size", partners=names, skew=1000.0),
        training=TRAINING,
        privacy=StudyPrivacy(
            epsilons=(1.0, 3.0), delta=1e-4, protection="distributed", minimum_cohort=20
        ),
        seeds=tuple(range(seeds)),
    )


def hillstrom(seeds: int, file: Path) -> Study:
    """Label visit, partners by channel."""
    return Study(
        name="Hillstrom",
        data=StudyData(dataset="hillstrom", file=file),
        partition=Partition(kind="column", column="channel"),
        training=HILLSTROM_TRAINING,
        privacy=StudyPrivacy(epsilons=(1.0,), delta=1e-5, protection="distributed"),
        seeds=tuple(range(seeds)),
    )


def split_hillstrom(seeds: int, partners: int, file: Path) -> Study:
    """Hillstrom's customers shared out by lot to so many partners of about one size."""
    study = hillstrom(seeds, file)
    names = tuple((f"p{number:02}", ()) for number in range(partners))
    partition = Partition(kind="size", partners=names, skew=1000.0)
    privacy = replace(study.privacy, epsilons=(1.0, 3.0))
    return replace(study, name=f"{partners} partners", partition=partition, privacy=privacy)


def found(
    result: StudyResult, comparison: Comparison, epsilon: float | None, trained_by: str = ALL
) -> Estimate:
    """AUC on all held-out rows."""
    chosen = select(
        result.measurements, comparison=comparison, epsilon=epsilon, trained_by=trained_by
    )
    return estimate(list(chosen.values()))


def run(study: Study) -> StudyResult:
    """Runs the study in a folder of its own."""

    def tell(progress: Progress) -> None:
        sys.stderr.write(f"\r{study.name}: {progress.done}/{progress.total} ")
        sys.stderr.flush()

    with tempfile.TemporaryDirectory() as folder:
        result = run_study(study, Path(folder) / "study", on_progress=tell)
    sys.stderr.write("\n")
    return result


def show_journey(result: StudyResult) -> None:
    ceiling = found(result, "pooled", None)
    print("\nComplete Journey, household-level, δ = 1e-4, all test rows;")
    print(f"± over {ceiling.seeds} noise seeds alone")
    print(f"pooled without DP {shown(ceiling)}   reference {REFERENCES[None]:.3f}")
    names = [partner.name for partner in result.partners]
    heads = (
        "    ε",
        "reference",
        "pooled DP      ",
        "joint, shared",
        "÷ reference",
        "all by each    ",
    )
    print("   ".join([*heads, "alone:"]))
    for epsilon in result.study.privacy.epsilons:
        pooled, joint = found(result, "pooled_dp", epsilon), found(result, "joint", epsilon)
        local = found(result, "joint_local", epsilon)
        alone = ", ".join(f"{n} {shown(found(result, 'alone', epsilon, n))}" for n in names)
        print(
            f"{epsilon:5g} {REFERENCES[epsilon]:11.3f}   {shown(pooled)}   {shown(joint)} "
            f"{joint.mean / REFERENCES[epsilon]:13.3f}   {shown(local):18}   {alone}"
        )
    print("\nat each partner's own held-out households")
    print(result.table())


def show_hillstrom(result: StudyResult) -> None:
    joint, pooled = found(result, "joint", 1.0), found(result, "pooled_dp", 1.0)
    ceiling = found(result, "pooled", None)
    print(f"\nHillstrom visit, ε = 1, δ = 1e-5; {joint.seeds} seeds (± over these), all test rows")
    local = found(result, "joint_local", 1.0)
    print(f"pooled without DP {shown(ceiling)}, pooled DP {shown(pooled)}")
    print(f"joint, shared noise {shown(joint)}; joint, all noise by each {shown(local)}")
    print(f"least asked for the joint model: {HILLSTROM_LEAST:.3f}")


def show_split(study: Study) -> None:
    """One row for each ε; nobody trains alone here."""
    training, partners = study.training, len(study.partition.partners)
    with tempfile.TemporaryDirectory() as folder:
        ground = open_ground(prepare_ground(study, Path(folder)))
        noise = {
            epsilon: calibrate_noise_multiplier(
                epsilon,
                study.privacy.delta,
                training.sampling_prob,
                training.rounds * training.local_steps,
            )
            for epsilon in study.privacy.epsilons
        }
        listed = [c for c in cells(study, (), noise) if c.comparison != "alone"]
        measured = [m for cell in listed for m in run_cell(cell, study, ground).measurements]
    for epsilon in study.privacy.epsilons:
        compared: list[tuple[Comparison, float | None]] = [
            ("joint_local", epsilon),
            ("joint", epsilon),
            ("pooled_dp", epsilon),
            ("pooled", None),
        ]
        values = [
            estimate(list(select(measured, comparison=c, epsilon=e).values())) for c, e in compared
        ]
        print(f"{partners:8} {epsilon:3g}   " + "   ".join(f"{shown(v):14}" for v in values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--hillstrom", type=Path, help="hillstrom.csv.gz; left out where not given")
    options = parser.parse_args()
    print(describe())
    show_journey(run(journey(options.seeds)))
    print("\nthe same households by lot, test AUC on all held-out rows")
    print(HEADS)
    for partners in (3, 10):
        show_split(split(options.seeds, partners))
    if options.hillstrom:
        show_hillstrom(run(hillstrom(options.seeds, options.hillstrom)))
        print("\nthe same customers by lot")
        print(HEADS)
        for partners in (3, 10, 30):
            show_split(split_hillstrom(options.seeds, partners, options.hillstrom))


if __name__ == "__main__":
    main()
