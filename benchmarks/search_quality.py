"""How well searches search, on a surface whose answer is known; ratios against random search and against no stopping.

    python benchmarks/search_quality.py [--seeds 20] [--gp-sampler-seeds 6] [--json]

hypervolume_share: hypervolume that the constrained two-objective search (AP up, GFLOPs down, GFLOPs <= 200) has found
after 60 trials (or half of those that random search needed for 95 %, if that is less), over the true one.
trials_share: trials it needed for 95 % over the trials random search needed. asha_regret: how far the configuration
that successive halving returns is below the best in the space. asha_compute_share: GPU hours it spent over those of 200
random trials trained to their end. seconds_to_screen_10000: processor seconds to profile 10,000 candidates of
search_spaces/compound-scaling.yaml (from 2,000 of them).

gp_sampler_*: the same search by Optuna's GPSampler (see `gp_sampler.py`), for as many seeds as are asked for: about a
minute a seed and search. trials_share_of_gp_sampler: trials after which the own Gaussian process has what GPSampler
has in the end with the same seed, over the trials of that; ..._for_ap: the same where AP alone is wanted, which is the
noise-free AP of the trial that measured best.

Medians over seeds. Noise is included; what is judged is the noise-free AP of what each search calls its result.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gp_sampler import GPSamplerSearcher
from response_surface import (
    CONSTRAINTS,
    MOST_GFLOPS,
    OBJECTIVES,
    PARAMETERS,
    best_ap,
    final_ap,
    found_hypervolume,
    hours,
    measured_ap,
    screen,
    true_hypervolume,
)
from yolofleet.search.engine import Engine, SegmentResult, TrialSegment
from yolofleet.search.feasibility import Screen
from yolofleet.search.history import History, Observation
from yolofleet.search.schedulers import Halving
from yolofleet.search.searcher import Searcher, SearchProblem, Suggestion
from yolofleet.search.space import Space, random_point
from yolofleet.search.trials import Trials
from yolofleet.specs.search import load_search
from yolofleet.specs.search_parts import AlgorithmSpec, BudgetSpec, Objective, SchedulerSpec

Worth = Callable[[list[Observation]], float]
GP_SAMPLER = "gaussian_process_optuna"
WANTED_SHARE = 0.95
MOST_TRIALS = 600
FULL_TRIALS = 200
MODEL_TRIALS = 60
SCREENED = 2000
SPACES = Path(__file__).parents[1] / "search_spaces"
AP = [Objective(metric="val_AP", goal="max")]
SCHEDULER = SchedulerSpec(name="asha", reduction=3.0, rungs=2, measure="compute")
HALVING_TRIALS = 92
LARGEST_HOURS = 8 * MOST_GFLOPS / 100


def searcher(algorithm: str, objectives: list[Objective], seed: int) -> Searcher:
    """Return a searcher over the surface."""
    return Searcher(
        SearchProblem(
            PARAMETERS,
            objectives=objectives,
            constraints=CONSTRAINTS,
            algorithm=AlgorithmSpec(name=algorithm),
            screen=screen,
            known=frozenset({"gflops"}),
            seed=seed,
        )
    )


def suggester(algorithm: str, objectives: list[Objective], seed: int) -> Callable[[History], Suggestion | None]:
    """Return what suggests the next candidate."""
    if algorithm == GP_SAMPLER:
        return GPSamplerSearcher(objectives, seed).suggest_screened
    return searcher(algorithm, objectives, seed).suggest


def progress(
    algorithm: str, objectives: list[Objective], seed: int, most: int, worth: Worth, until: float = math.inf
) -> list[float]:
    """Return what was found after each trial, up to ``most`` trials or until so much is found."""
    suggest = suggester(algorithm, objectives, seed)
    history: list[Observation] = []
    done: list[Observation] = []
    found: list[float] = []
    while len(done) < most and (not found or found[-1] < until):
        suggestion = suggest(history)
        assert suggestion is not None
        entry = suggestion.observation
        entry = replace(entry, measured={"val_AP": measured_ap(entry.values, 1.0, seed, len(done))})
        history += [*suggestion.refused, entry]
        done.append(entry)
        found.append(worth(done))
    return found


def found_ap(done: list[Observation]) -> float:
    """Return the noise-free AP of the candidate that a search calls its best."""
    return final_ap(max(done, key=lambda entry: entry.measured["val_AP"]).values)


def against_gp_sampler(
    objectives: list[Objective], ours: list[list[float]], num_seeds: int, most: int, worth: Worth
) -> tuple[list[float], list[float], float]:
    """Return what GPSampler finds for each seed, the shares of its trials that ours need, its seconds a suggestion."""
    begin = time.process_time()
    theirs = [progress(GP_SAMPLER, objectives, seed, most, worth)[-1] for seed in range(num_seeds)]
    seconds = (time.process_time() - begin) / (num_seeds * most)
    needed = [first_beyond(own, end, most + 1) / most for own, end in zip(ours, theirs, strict=False)]
    return theirs, needed, seconds


def first_beyond(found: list[float], share: float, most: int) -> int:
    """Return the number of trials after which a share was reached; ``most`` where it never was."""
    return next((number for number, value in enumerate(found, start=1) if value >= share), most)


def full_hours(seed: int) -> float:
    """Return the GPU hours of 200 random feasible trials trained to their end."""
    spent, count, number = 0.0, 0, 0
    while count < FULL_TRIALS:
        values = PARAMETERS.at(random_point(seed, number, len(PARAMETERS)))
        number += 1
        if screen(values).feasible:
            spent += hours(values, 1.0)
            count += 1
    return spent


def halving(seed: int, algorithm: str = "gaussian_process", trials: int = HALVING_TRIALS) -> tuple[float, float]:
    """Return (regret, share of the full compute) of one search with successive halving."""
    record = Trials()
    schedule = Halving(SCHEDULER, AP, lambda trial: hours(trial.values, 1.0), LARGEST_HOURS)
    engine = Engine(record, searcher(algorithm, AP, seed), BudgetSpec(trials=trials), schedule)
    spent = 0.0
    while isinstance(segment := engine.next_segment(), TrialSegment):
        newest = record.trials[segment.trial].at(0)
        cost = hours(segment.values, segment.share - (newest.share if newest is not None else 0.0))
        spent += cost
        ap = measured_ap(segment.values, segment.share, seed, segment.trial)
        engine.complete(segment, SegmentResult(share=segment.share, measured={"val_AP": ap}, gpu_seconds=cost * 3600))
    ends = [trial for trial in record.trials.values() if (at := trial.at(0)) is not None and at.share >= 1]
    chosen = max(ends, key=lambda trial: trial.measurements[-1].values["val_AP"])
    return (best_ap() - final_ap(chosen.values)) / best_ap(), spent / full_hours(seed)


def screening_seconds() -> float:
    """Return the processor seconds that profiling 10,000 candidates of a real space takes."""
    space = Space(load_search(SPACES / "compound-scaling.yaml"))
    profile = Screen(space)
    begin = time.process_time()
    for number in range(SCREENED):
        profile(space.parameters.at(random_point(0, number, len(space.parameters))))
    return (time.process_time() - begin) * 10_000 / SCREENED


def measure(num_seeds: int, num_peer_seeds: int) -> dict[str, Any]:
    """Measure everything."""
    truth = true_hypervolume()
    seeds = range(num_seeds)

    def share(done: list[Observation]) -> float:
        return found_hypervolume(done) / truth

    random = [progress("random", OBJECTIVES, seed, MOST_TRIALS, share, WANTED_SHARE) for seed in seeds]
    random_trials = statistics.median(first_beyond(found, WANTED_SHARE, MOST_TRIALS) for found in random)
    half = min(MODEL_TRIALS, int(random_trials / 2))
    begin = time.process_time()
    ours = [progress("gaussian_process", OBJECTIVES, seed, half, share) for seed in seeds]
    our_seconds = (time.process_time() - begin) / (num_seeds * half)
    our_trials = statistics.median(first_beyond(found, WANTED_SHARE, MOST_TRIALS) for found in ours)
    tpe = [progress("tpe", OBJECTIVES, seed, half, share)[-1] for seed in seeds[:6]]
    halved = [halving(seed) for seed in seeds]
    ours_for_ap = [progress("gaussian_process", AP, seed, half, found_ap) for seed in seeds]
    theirs, needed, their_seconds = against_gp_sampler(OBJECTIVES, ours, num_peer_seeds, half, share)
    theirs_for_ap, needed_for_ap, _ = against_gp_sampler(AP, ours_for_ap, num_peer_seeds, half, found_ap)
    return {
        "hypervolume_share": statistics.median(found[-1] for found in ours),
        "trials_share": our_trials / random_trials,
        "asha_regret": statistics.median(regret for regret, _ in halved),
        "asha_compute_share": statistics.median(share for _, share in halved),
        "seconds_to_screen_10000": screening_seconds(),
        "trials_to_95_percent": our_trials,
        "random_trials_to_95_percent": random_trials,
        "hypervolume_share_after": half,
        "tpe_hypervolume_share": statistics.median(tpe),
        "gp_sampler_hypervolume_share": statistics.median(theirs),
        "trials_share_of_gp_sampler": statistics.median(needed),
        "trials_share_of_gp_sampler_mean": statistics.mean(needed),
        "ap_found": statistics.median(found[-1] for found in ours_for_ap),
        "gp_sampler_ap_found": statistics.median(theirs_for_ap),
        "trials_share_of_gp_sampler_for_ap": statistics.median(needed_for_ap),
        "trials_share_of_gp_sampler_for_ap_mean": statistics.mean(needed_for_ap),
        "seconds_a_suggestion": our_seconds,
        "gp_sampler_seconds_a_suggestion": their_seconds,
        "gp_sampler_seeds": num_peer_seeds,
        "true_hypervolume": truth,
        "best_ap": best_ap(),
        "seeds": num_seeds,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--gp-sampler-seeds", type=int, default=6)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments.seeds, min(arguments.seeds, arguments.gp_sampler_seeds))
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        for name, value in result.items():
            print(f"{name:<40} {value:.4g}")


if __name__ == "__main__":
    main()
