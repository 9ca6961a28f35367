"""What is decided on the tuning half: the learning rate, the length of training, adjustments."""

from typing import Dict, Iterable, List, Mapping, Optional

from .results import Results, columns_of
from .rows import BY_CLASS, Training, settings
from .steps import Metrics, Model, Steps

# "Converged": one more half of the iterations adds less box AP than this.
ENOUGH = 1.0
MOST_RATES = 6  # where the best of those tried stays at an edge


def _ap(metrics: Mapping[str, str]) -> float:
    return float(metrics["bbox/AP"] or -1)


class Search:
    """Trains and evaluates models and adds what it measures to results.csv and classes.csv.

    Args:
        steps: runs them, or finds their results.
        results, classes: where lines are added.
    """

    def __init__(self, steps: Steps, results: Results, classes: Results):
        self._steps, self._results, self._classes = steps, results, classes

    def converged(self, training: Training, start: str = "") -> Model:
        """The model with the best learning rate, trained until it gains no more; seed 1.

        Args:
            start: see :meth:`Steps.train`.
        """
        first = self._steps.shape.iterations
        aps: Dict[float, float] = {}
        rates = list(self._steps.shape.rates)
        while rates:
            for rate in rates:
                aps[rate] = self._tuning_ap(Model(training, rate, first, 1), start=start)
            best = max(aps, key=lambda rate: aps[rate])
            # A best rate at an edge of those tried may not be the best.
            rates = [2 * best] if best == max(aps) else [best / 2] if best == min(aps) else []
            rates = rates if len(aps) < MOST_RATES else []
        for rate in aps:
            if rate != best:
                self._steps.forget(Model(training, rate, first, 1))
        model, ap = Model(training, best, first, 1), aps[best]
        while True:
            longer = model._replace(iterations=round(1.5 * model.iterations))
            gain = self._tuning_ap(longer, model, start) - ap
            shown = (model, longer) if gain < 0 else (longer, model)
            if gain < ENOUGH and longer.iterations >= self._steps.shape.least_iterations:
                self._steps.forget(shown[1])
                return shown[0]
            self._steps.forget(model)
            model, ap = longer, ap + gain

    def _tuning_ap(self, model: Model, shorter: Optional[Model] = None, start: str = "") -> float:
        if not self._steps.train(model, shorter, start):
            self._record(model, "tuning", "none", {"none": {}})
            return -1.0
        metrics = self._steps.evaluate(model, "tuning", ["none"], masks=False)
        self._record(model, "tuning", "none", metrics)
        return _ap(metrics["none"])

    def choose(self, model: Model) -> Dict[str, str]:
        """The best setting of each family of adjustments on the tuning half."""
        families = {f: settings(f) for f in ("none", *model.training.adjust)}
        every = [setting for family in families.values() for setting in family]
        metrics = self._steps.evaluate(model, "tuning", every, masks=False)
        for family, its in families.items():
            self._record(model, "tuning", family, {setting: metrics[setting] for setting in its})
        return {f: max(its, key=lambda s: _ap(metrics[s])) for f, its in families.items()}

    def report(self, model: Model, chosen: Mapping[str, str]) -> None:
        """Measure a model with chosen settings on the table's half."""
        metrics = self._steps.evaluate(model, "table", list(dict.fromkeys(chosen.values())))
        for family, setting in chosen.items():
            self._record(model, "table", family, {setting: metrics[setting]})

    def report_classes(self, model: Model, chosen: Mapping[str, str]) -> None:
        """Measure every class on the table's half, for the rows of BY_CLASS."""
        for family, setting in chosen.items():
            if (model.training.name, family) in BY_CLASS:
                alpha = "0" if family == "none" else setting.removeprefix("tde alpha=")
                found = self._steps.classes(model, ["MODEL.TDE.ALPHA", alpha], family)
                known = {"shape": self._steps.name, "row": model.training.name, "adjust": family}
                self._classes.add(
                    {**c, **known, "setting": setting, "AP": c["AP_bbox"]} for c in found
                )

    def best(self, models: Iterable[Model], count: int) -> List[Model]:
        """The models of so many rows: those with the highest AP on the tuning half."""
        aps = {
            (model, family): _ap(self._steps.evaluate(model, "tuning", [setting], False)[setting])
            for model in models
            for family, setting in self.choose(model).items()
        }
        rows = sorted(aps, key=lambda row: -aps[row])[:count]
        return list(dict.fromkeys(model for model, _ in rows))

    def _record(self, model: Model, half: str, family: str, metrics: Metrics) -> None:
        trained, training = self._steps.trained(model), model.training
        origin = {k: round(v) if k.endswith("seconds") else v for k, v in trained.items()}
        overrides = " ".join((*self._steps.shape.opts, *training.opts))
        self._results.add(
            {
                **{"shape": self._steps.name, "row": training.name, "adjust": family},
                **{"seed": model.seed, "lr": f"{model.rate:g}", "iterations": model.iterations},
                **{"split": half, "setting": setting, "overrides": overrides, **origin},
                **{"config": self._steps.shape.config, **columns_of(values)},
            }
            for setting, values in metrics.items()
        )
