"""The page: drop an image, move sliders, see the instances."""

from typing import Any, Dict, List, Optional

import numpy as np
from detectron2.config import CfgNode

from ..adjustments import Step
from ..data.categories import categories_of
from ..engine import Predictor
from ..errors import InputError
from ..evaluation.sweep import chain_of
from ..modeling import box_predictors
from ..modeling.build import TrainingSet
from ..visualization import draw_panels, pixels, select_readable
from .image import LiveImage


class Live:
    """Draws the detections of an image with the adjustments that the sliders say.

    Args:
        cfg: names the checkpoint, the classes and, for NorCal, the training set.

    Attributes:
        has_tde: the classifier is a normalised one.
        norcal_hint: why NorCal cannot be tried; "" if it can.
    """

    def __init__(self, cfg: CfgNode):
        self.predictor = Predictor(cfg)
        self.categories = dict(enumerate(categories_of(cfg.DATASETS.TEST[0])))
        self._data, self._stages = TrainingSet(cfg), box_predictors(self.predictor.model)
        self.has_tde = self._stages[0].is_normalized
        self.norcal_hint = ""
        try:
            self._chains(0.0, 0.1)
        except InputError as error:
            self.norcal_hint = f"NorCal needs class counts: {error}"

    def look(self, image: Optional[np.ndarray]) -> Optional[LiveImage]:
        """Run the model on an image, ``uint8[H, W, 3]`` RGB."""
        return None if image is None else LiveImage(self.predictor, image)

    def draw(
        self, live: Optional[LiveImage], alpha: float, gamma: float, score: float
    ) -> Optional[np.ndarray]:
        """The picture, ``uint8[H', W', 3]`` RGB; the model's backbone does not run again."""
        if live is None:
            return None
        found = live.detections(self._chains(alpha, gamma), score)
        shown = select_readable(found, score, max_per_class=10)
        return pixels(draw_panels(live.image, {"predictions": shown}, self.categories))

    def _chains(self, alpha: float, gamma: float) -> List[Any]:
        """The adjustments of every stage."""
        chosen: Dict[str, Dict[str, Any]] = {}
        if self.has_tde and alpha:
            chosen["tde"] = {"alpha": float(alpha)}
        if gamma:
            chosen["norcal"] = {"gamma": float(gamma)}
        chain = [Step(name, options) for name, options in chosen.items()]
        return [chain_of(stage, chain, self._data) for stage in self._stages]


def serve(live: Live, alpha: float, host: str, port: int, block: bool = True) -> Any:
    """Serve the page with gradio. It needs nothing from outside this machine.

    Args:
        alpha: where the slider of α starts.
        host: ``"127.0.0.1"`` for this machine alone, ``"0.0.0.0"`` for the network.
        block: until interrupted.

    Returns:
        the page, which ``close()`` ends.

    Raises:
        InputError: gradio is not installed, or the port is taken.
    """
    try:
        import gradio
    except ImportError as error:
        raise InputError(f'--serve needs gradio: pip install -e ".[serve]" ({error})') from error
    has_counts = not live.norcal_hint
    with gradio.Blocks(title="tde_det", analytics_enabled=False) as page:
        looked_at = gradio.State()
        gradio.Markdown("# tde_det\nDrop an image. The sliders change scores, not boxes.")
        with gradio.Row():
            with gradio.Column(scale=1):
                image = gradio.Image(label="Image", type="numpy", image_mode="RGB")
                sliders = [
                    gradio.Slider(0, 4, alpha, step=0.1, label="TDE α", visible=live.has_tde),
                    gradio.Slider(0, 2, 0, step=0.05, label="NorCal γ", visible=has_counts),
                    gradio.Slider(0.01, 1, 0.3, step=0.01, label="Lowest score shown"),
                ]
                gradio.Markdown(live.norcal_hint)
            with gradio.Column(scale=2):
                picture = gradio.Image(label="Instances", interactive=False, format="jpeg")
        everything = [looked_at, *sliders]
        image.change(live.look, image, looked_at).then(live.draw, everything, picture)
        for slider in sliders:
            slider.input(
                *(live.draw, everything, picture),
                show_progress="hidden",
                trigger_mode="always_last",
            )
    # Gradio's own fonts come from the network.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        page.launch(
            server_name=host,
            server_port=port,
            theme=theme,
            footer_links=[],
            prevent_thread_lock=not block,
        )
    except OSError as error:
        raise InputError(f"--serve {port} on {host}: {error}") from error
    return page
