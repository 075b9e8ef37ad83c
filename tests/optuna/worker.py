"""One of several processes that share a study: python worker.py STORAGE STUDY N_TRIALS."""

import os
import sys
import time

import numpy as np
import optuna

from hypergrad_optuna import HypergradSampler, report_gradient, wants_gradient


def bowl(trial: optuna.Trial) -> float:
    x = np.array([trial.suggest_float(f"x{i}", -5, 5) for i in range(6)])
    value = float(np.sum((x - 1) ** 2))
    trial.set_user_attr("process", os.getpid())
    time.sleep(0.02)
    if wants_gradient(trial, value):
        report_gradient(trial, {f"x{i}": g for i, g in enumerate(2 * (x - 1))})
    return value


if __name__ == "__main__":
    storage, name, trials = sys.argv[1:]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name=name, storage=storage, sampler=HypergradSampler())
    study.optimize(bowl, n_trials=int(trials))
