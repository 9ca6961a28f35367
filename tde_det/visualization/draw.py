"""Draw objects with masks, boxes and names, coloured by how rare their class is in training."""

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from .labels import CELL, place_labels
from .outlines import outlines

# Colour-blind safe (Okabe and Ito), RGB in [0, 1].
FREQUENCY_COLORS = {"r": (0.84, 0.37, 0.0), "c": (0.0, 0.62, 0.45), "f": (0.0, 0.45, 0.70)}
FREQUENCY_NAMES = {"r": "rare", "c": "common", "f": "frequent"}
OTHER_COLOR = (0.8, 0.47, 0.65)  # a class whose frequency is not known
_SHORT_SIDE, _LONG_SIDE = 480, 1600  # smaller pictures are enlarged, or labels would cover them
_LONGEST = 16_000  # longer ones are made smaller: matplotlib and JPEG end at 65,000 pixels
_DPI = 100
_GAP = 4  # pixels between panels, and between labels below a picture

Objects = Sequence[Dict[str, Any]]
Categories = Mapping[int, Dict[str, Any]]


class _Canvas:
    """A matplotlib figure in pixels, from the top left.

    Args:
        width, height: in pixels.
        font: height of the text in pixels.
    """

    def __init__(self, width: int, height: int, font: float):
        self.figure = Figure((width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        self.renderer = FigureCanvasAgg(self.figure).get_renderer()
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")
        self.font = font

    def text(self, text: str, x: float, y: float, color: Any = "white") -> Any:
        """Text whose top left corner is at x, y."""
        size = self.font * 72 / _DPI
        return self.axes.text(x, y, text, color=color, size=size, va="top", parse_math=False)

    def size_of(self, text: str) -> Tuple[float, float]:
        """Width and height of a label: the text with a margin."""
        drawn = self.text(text, 0, 0)
        extent = drawn.get_window_extent(self.renderer)
        drawn.remove()
        return extent.width + 6, self.font + 6

    def label(self, text: str, x: float, y: float, size: Tuple[float, float], color: Any) -> None:
        """White text on a coloured rectangle."""
        self.rectangle(x, y, *size, facecolor=color, alpha=0.85, linewidth=0)
        self.text(text, x + 3, y + 2)

    def add(self, patch: Any) -> None:
        """Add a patch; quicker than ``add_patch``, which looks for the limits of the axes."""
        self.axes.add_artist(patch)

    def rectangle(self, x: float, y: float, width: float, height: float, **style: Any) -> None:
        self.add(Rectangle((x, y), width, height, **style))


def _describe(obj: Dict[str, Any], categories: Categories) -> Tuple[str, Any]:
    """An object's label and colour."""
    category = categories[obj["category_id"]]
    score = f" {100 * obj['score']:.0f}%" if "score" in obj else ""
    name = str(category["name"]).replace("_", " ")
    return name + score, FREQUENCY_COLORS.get(category.get("frequency", ""), OTHER_COLOR)


def _flow(sizes: List[Tuple[float, float]], width: float) -> List[Tuple[float, float]]:
    """Left and top of labels in rows, as words on a page."""
    places, x, y = [], 0.0, 0.0
    for label_width, label_height in sizes:
        if x and x + label_width > width:
            x, y = 0.0, y + label_height + _GAP
        places.append((x, y))
        x += label_width + _GAP
    return places


class _Panel:
    """One picture's objects: their outlines, and where their labels go.

    Args:
        objects, categories: see :func:`draw_panels`.
        scale: pixels of the picture per pixel of the image.
        shape: height and width of the picture.
        room_below: see :func:`draw_panels`.
        canvas: to measure text with.
    """

    def __init__(
        self,
        objects: Objects,
        categories: Categories,
        scale: float,
        shape: Tuple[int, int],
        room_below: Optional[float],
        canvas: _Canvas,
    ):
        height, width = shape
        described = [_describe(obj, categories) for obj in objects]
        self.texts, self.colors = [text for text, _ in described], [c for _, c in described]
        boxes = scale * np.array([obj["bbox"] for obj in objects], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        self.boxes = boxes = boxes.clip(0, [width, height, width, height])
        self.lines = [
            outlines(obj["segmentation"], scale) if obj.get("segmentation") else []
            for obj in objects
        ]
        covered = np.zeros((len(boxes), -(-height // CELL), -(-width // CELL)), np.uint8)
        for cells, (x0, y0, x1, y1), lines in zip(covered, boxes, self.lines):
            shapes = lines or [np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])]
            rounded = [np.floor(line / CELL).astype(np.int32) for line in shapes]
            cv2.fillPoly(cells, rounded, 1)
            cv2.polylines(cells, rounded, True, 1)
        self.sizes = [canvas.size_of(text) for text in self.texts]
        self.places = place_labels(self.sizes, boxes, covered.astype(bool), shape)
        self.below = [i for i, place in enumerate(self.places) if place is None]
        self.flow = _flow([self.sizes[i] for i in self.below], width)
        heights = [self.sizes[i][1] for i in self.below]
        bottoms = [round(y + h + 2 * _GAP) for h, (_, y) in zip(heights, self.flow)]
        if room_below is None:
            self.strip = max(bottoms, default=0)  # height of the labels below the picture
        else:
            self.strip = round(room_below * height)
            self.flow = self.flow[: sum(bottom <= self.strip for bottom in bottoms)]

    def draw(self, canvas: _Canvas, left: float, top: float, height: int) -> None:
        """Draw all objects and labels on a picture whose corner is at ``left, top``."""
        for (x0, y0, x1, y1), lines, color in zip(self.boxes, self.lines, self.colors):
            canvas.rectangle(
                *(left + x0, top + y0, x1 - x0, y1 - y0), fill=False, edgecolor=color, linewidth=1
            )
            if lines:
                corner = np.array([left, top])
                closed = [np.vstack([line, line[:1]]) + corner for line in lines]
                path = Path.make_compound_path(*(Path(line, closed=True) for line in closed))
                style = {"facecolor": (*color, 0.45), "edgecolor": color, "linewidth": 1.2}
                canvas.add(PathPatch(path, **style))
        for i, place in enumerate(self.places):
            if place is not None:
                x, y = left + place[0], top + place[1]
                canvas.label(self.texts[i], x, y, self.sizes[i], self.colors[i])
        for i, (x, y) in zip(self.below, self.flow):
            x, y = left + x, top + height + _GAP + y
            x0, y0, x1, y1 = self.boxes[i]
            ends = [x + self.sizes[i][0] / 2, left + (x0 + x1) / 2], [y, top + (y0 + y1) / 2]
            canvas.axes.plot(*ends, color=self.colors[i], linewidth=0.8)
            canvas.label(self.texts[i], x, y, self.sizes[i], self.colors[i])


def draw_panels(
    image: np.ndarray,
    panels: Mapping[str, Objects],
    categories: Categories,
    room_below: Optional[float] = None,
) -> Figure:
    """Draw annotations or detections of one image, side by side, with a title over each.

    A label lies where it hides no other object and no other label; if there is no such place, below
    the picture, with a line to its object.

    Args:
        image: ``uint8[H, W, 3]`` RGB.
        panels: by title, LVIS-format dicts with ``bbox``, ``category_id`` and, if they have one,
            ``segmentation`` and ``score``.
        categories: by id, with ``name`` and ``frequency``.
        room_below: height of the labels below the picture, as a share of the picture's. Labels
            that need more are left out. By default it is what all labels need, so pictures of
            equal images may differ in height, as the frames of a video must not.

    Returns:
        a figure, of which a panel is the image, enlarged to a short side of 480 pixels: see
        :func:`pixels`, or ``figure.savefig``.
    """
    short, long = sorted(image.shape[:2])
    scale = min(max(1.0, min(_SHORT_SIDE / short, _LONG_SIDE / long)), _LONGEST / long)
    height, width = (max(1, round(scale * n)) for n in image.shape[:2])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    font = max(12.0, (height * width) ** 0.5 / 60)
    bar = round(font) + 14
    measure = _Canvas(width, height, font)
    drawn = [
        _Panel(objects, categories, scale, (height, width), room_below, measure)
        for objects in panels.values()
    ]
    total = (width + _GAP) * len(drawn) - _GAP
    canvas = _Canvas(total, bar + height + max(panel.strip for panel in drawn), font)
    canvas.rectangle(0, 0, total, bar, facecolor="0.13", linewidth=0)
    end = _legend(canvas, total)
    for i, (title, panel) in enumerate(zip(panels, drawn)):
        left = i * (width + _GAP)
        extent = left, left + width, bar + height, bar
        canvas.axes.imshow(image, extent=extent, interpolation="nearest")
        panel.draw(canvas, left, bar, height)
        room = Rectangle((left, 0), min(width, end - left), bar, transform=canvas.axes.transData)
        canvas.text(title, left + 8, 7).set(clip_path=room, clip_on=True)
    canvas.axes.set(xlim=(0, total), ylim=(canvas.axes.get_ylim()[0], 0))  # imshow changes them
    canvas.axes.set_aspect("auto")
    return canvas.figure


def _legend(canvas: _Canvas, right: float) -> float:
    """What the colours mean; lighter than in the picture, since text is thinner than a mask.

    Returns:
        where its left end is.
    """
    for frequency, color in reversed(FREQUENCY_COLORS.items()):
        right -= canvas.size_of(FREQUENCY_NAMES[frequency])[0] + 4
        canvas.text(FREQUENCY_NAMES[frequency], right, 7, 0.5 + 0.5 * np.array(color))
    return right


def pixels(figure: Figure) -> np.ndarray:
    """``uint8[H, W, 3]`` RGB of a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
