"""A driver in a process of its own: python driver.py ADDRESS FOLDER NAME [kill|restore] [of-ray].

With `of-ray`, the searcher learns space, metric and mode from Ray alone.
"""

import json
import os
import signal
import sys
from typing import Any

import numpy as np
import ray
from ray import tune

from hypergrad_ray import HypergradSearch, wants_gradient
from hypergrad_search import Float


def bowl(config: dict[str, Any]) -> None:
    offset = np.asarray(config["x"]) - 0.25
    loss = float(offset @ offset)
    tune.report({"loss": loss, "gradient": {"x": 2 * offset} if wants_gradient(config, loss) else None})


class Killer(tune.Callback):
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if len(trials) == 7 and "kill" in sys.argv:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    address, folder, name = sys.argv[1:4]
    ray.init(address=address, log_to_driver=False)
    if "restore" in sys.argv:
        tuner = tune.Tuner.restore(f"{folder}/{name}", bowl)
    else:
        searcher, space = HypergradSearch({"x": Float(-1.0, 1.0, shape=(3,))}, metric="loss", mode="min", seed=0), None
        if "of-ray" in sys.argv:
            searcher, space = HypergradSearch(seed=0), {"x": [tune.uniform(-1.0, 1.0) for _ in range(3)]}
        tuner = tune.Tuner(
            bowl,
            param_space=space,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                metric="loss",
                mode="min",
                num_samples=14,
                max_concurrent_trials=1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name=name, storage_path=folder, verbose=0, callbacks=[Killer()]),
        )
    configs = []
    results: Any = tuner.fit()
    for result in results:
        result.config["hypergrad"]["parent"] = None  # Ray draws the names of trials at random
        configs.append(json.dumps(result.config, default=np.ndarray.tolist))
    print(json.dumps(sorted(configs)))  # Ray changes their order when it restores


if __name__ == "__main__":
    main()
