#!/usr/bin/env python
"""Compare methods for long tails on mini_lvis; write results.csv and docs/benchmark.md.

Everything that is done already, in whole or in part, is found in --output and not done again: the
same command continues. A row that fails does not stop the others. Exit status: 0 all is done, 1
rows have failed, 3 the time was over before.
"""

import argparse
import os
import sys
import threading
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Sequence

from tde_det import cli

EXAMPLE = "run.py --shape full --minutes 9"
HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SHAPE_NAMES = ("small", "redrawn", "photographs", "full", "imagenet", "tiny")
FAILED, TO_BE_CONTINUED = 1, 3
BEST = 5  # rows whose models get more than one seed, beside those of rows.MAIN


def positive(text: str) -> int:
    """A number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def parse_args() -> argparse.Namespace:
    parser = cli.make_plain_parser(__doc__, EXAMPLE)
    sizes = (
        "small: 60 classes, on a CPU (default); redrawn: small with other images, and other "
        "classes rare; photographs: clothing, on a CPU; full: 1,203 classes, on a GPU; imagenet: "
        "small without the pretraining on other drawings; tiny: to try the runner"
    )
    parser.add_argument("--shape", choices=SHAPE_NAMES, default="small", help=sizes)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="trainings of rows.py")
    parser.add_argument("--jobs", type=positive, default=1, help="rows at a time (default: 1)")
    parser.add_argument("--minutes", type=float, help="stop after so long, to be continued")
    parser.add_argument("--nice", type=int, default=19, help="of all processes (default: 19)")
    parser.add_argument("--output", type=Path, default=Path("output/longtail"), help="of models")
    tracked = "that of this repository; of tiny, in --output"
    parser.add_argument("--results", type=Path, help=f"results.csv (default: {tracked})")
    parser.add_argument("--page", type=Path, help=f"benchmark.md (default: {tracked})")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="for the headline")
    args = parser.parse_args()
    own = args.output / "tiny" if args.shape == "tiny" else None  # its figures mean nothing
    args.results = args.results or (own or HERE) / "results.csv"
    args.page = args.page or (own or ROOT / "docs") / "benchmark.md"
    return args


class Runner:
    """Does rows, several at a time.

    Args:
        steps, results, classes: see :class:`Search`.
        pages: the page and the README to write after every row.
        jobs: rows at a time.
    """

    def __init__(self, steps: Any, results: Any, classes: Any, pages: Sequence[Path], jobs: int):
        from longtail.search import Search

        self._steps, self._pages = steps, (results, classes, *pages)
        self._search = Search(steps, results, classes)
        self._pool, self._mutex = ThreadPoolExecutor(jobs), threading.Lock()
        self._rows: Dict[str, Future] = {}
        self._pretrained: Future = Future()

    def rows(self, trainings: List[Any]) -> int:
        """Do rows with the first seed, then the main ones with all, then the best."""
        from longtail.pretraining import pretrain
        from longtail.rows import MAIN, SEEDS

        self._pretrained = self._pool.submit(pretrain, self._steps)  # before all others
        for training in trainings:
            self._rows[training.name] = self._pool.submit(self._row, training)
        status = self._wait(self._rows)
        if status == TO_BE_CONTINUED:
            return status
        models = [row.result() for row in self._rows.values() if row.exception() is None]
        main = [model for model in models if model.training.name in MAIN]
        best = [model for model in self._search.best(models, BEST) if model not in main]
        for group in (main, best):  # some of the best start from a main one of the same seed
            seeds = [model._replace(seed=seed) for model in group for seed in SEEDS[1:]]
            futures = {model.folder: self._pool.submit(self._seed, model) for model in seeds}
            status = max(status, self._wait(futures))
        return status

    def stop(self) -> None:
        """Begin no more steps, and wait for those that run."""
        self._steps.until = time.time()
        self._pool.shutdown(cancel_futures=True)

    def _row(self, training: Any) -> Any:
        model = self._search.converged(training, self._start(training, 1))
        chosen = self._search.choose(model)
        self._search.report(model, chosen)
        self._search.report_classes(model, chosen)
        self._write(model)
        return model

    def _seed(self, model: Any) -> None:
        """Another seed of a model, with the settings chosen for it with the first one."""
        chosen = self._search.choose(model._replace(seed=1))
        if not self._steps.train(model, start=self._start(model.training, model.seed)):
            raise RuntimeError("its loss became infinite")
        self._search.report(model, chosen)
        self._write(model)

    def _start(self, training: Any, seed: int) -> str:
        """The checkpoint that a training starts from."""
        if not training.start:
            return self._pretrained.result()
        return str(self._steps.checkpoint(self._rows[training.start].result()._replace(seed=seed)))

    def _write(self, model: Any) -> None:
        from longtail.page import write_page

        with self._mutex:
            print(f"{time.strftime('%H:%M')} done: {model.folder}", flush=True)
            write_page(*self._pages)

    @staticmethod
    def _wait(futures: Dict[str, Future]) -> int:
        """Wait for rows, and print the errors of those that fail. Returns the exit status."""
        from longtail.steps import OutOfTime

        failed, out_of_time = False, False
        for name, future in futures.items():
            error = future.exception()
            if isinstance(error, OutOfTime):
                out_of_time = True
            elif error is not None:
                failed = True
                print(f"{name} has failed:", *traceback.format_exception(error), flush=True)
        return TO_BE_CONTINUED if out_of_time else FAILED if failed else 0


@cli.exit_on_input_error
def main() -> int:
    args = parse_args()
    until = float("inf") if args.minutes is None else time.time() + 60 * args.minutes
    os.nice(args.nice)
    sys.path[0] = str(HERE.parent)  # of the package longtail
    from longtail.page import write_page
    from longtail.results import CLASS_COLUMNS, CLASS_KEY, Results
    from longtail.rows import BY_NAME, TRAININGS
    from longtail.shapes import SHAPES
    from longtail.steps import Steps

    unknown = set(args.rows or ()) - set(BY_NAME)
    if unknown:
        sys.exit(f"error: no row is called {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    trainings = [t for t in TRAININGS if t.name in (args.rows or SHAPES[args.shape].rows)]
    missing = {t.start for t in trainings} - {t.name for t in trainings} - {""}
    if missing:
        sys.exit(f"error: name these rows too, others start from them: {', '.join(missing)}")
    if not args.readme.is_file():
        sys.exit(f"error: --readme {args.readme} is no file: name a page to take the headline")
    args.results.parent.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    steps = Steps(SHAPES[args.shape], args.shape, args.output, until, threads)
    results = Results(args.results)
    classes = Results(args.results.with_name("classes.csv"), CLASS_COLUMNS, CLASS_KEY)
    pages = args.page, args.readme
    runner = Runner(steps, results, classes, pages, args.jobs)
    try:
        status = runner.rows(trainings)
    except KeyboardInterrupt:
        runner.stop()
        status = TO_BE_CONTINUED
    write_page(results, classes, *pages)
    if status == TO_BE_CONTINUED:
        print("Stopped before the end: the same command continues.")
    return status


if __name__ == "__main__":
    sys.exit(main())
