"""Build the sheet of drawings that mini_lvis is composed from.

The sheet ships with the package; run this, with resvg_py 0.5 installed, only to make it anew:

    npm pack @lobehub/fluent-emoji-3d@1.1.0 @iconify-json/fluent-emoji-flat@1.2.6 \\
        @iconify-json/noto@1.2.9 @iconify-json/twemoji@1.2.5 @iconify-json/emojione@1.2.3
    python tde_det/data/mini_lvis/assets/build_cutouts.py lobehub-fluent-emoji-3d-1.1.0.tgz \\
        iconify-json-{fluent-emoji-flat-1.2.6,noto-1.2.9,twemoji-1.2.5,emojione-1.2.3}.tgz

A class is a concept that the first four sets draw. Flags, skin tones, letters, signs and one of two
mirror images are left out. 1,203 of the rest, as many as LVIS v1 has classes, are kept: first those
that the fifth set draws too, last men and women doing what a person does in another class; within
each part the order scatters alike concepts.
"""

import argparse
import hashlib
import io
import json
import re
import tarfile
import unicodedata
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from PIL import Image

from tde_det.data.mini_lvis.cutouts import ASSETS, CLASSES_PER_ROW, CUTOUT_SIZE, MAX_DRAWINGS

Codes = Tuple[int, ...]  # code points

NUM_CLASSES = 1203
RENDERED_SIZE = 256
AS_PICTURE = 0xFE0F  # code point: draw the one before as a picture
MAN, WOMAN, FEMALE, MALE, KEYCAP = 0x1F468, 0x1F469, 0x2640, 0x2642, 0x20E3
SKIN_TONES = range(0x1F3FB, 0x1F400)
REGIONS = range(0x1F1E6, 0x1F200)
# No objects, and hard to tell apart.
SIGNS = re.compile(
    r"(.+-)?(arrows?|button|circle|square|diamond|asterisk|flags?|oclock|thirty|question-mark)"
    r"|(.+-)?(arrow-curving-.+|exclamation-mark|triangle-.+|male-sign|loop|(button|mark)-.+-type)"
    r"|(no|input|keycap|eight|diamond-with)-.+|.+-(button-blood-type|pointed-(down|up|star))"
    r"|aries|taurus|gemini|cancer|leo|virgo|libra|scorpio|sagittarius|capricorn|aquarius|pisces"
    r"|ophiuchus|plus|minus|divide|multiply|infinity|heavy-.+-sign|check-mark|cross-mark"
    r"|part-alternation-mark|wavy-dash|copyright|registered|trade-mark|information|circled-m"
    r"|hundred-points|prohibited|(non-)?potable-water|restroom|water-closet|zzz|om|star-of-david"
    r"|wheel-of-dharma|yin-yang|(latin|orthodox)-cross|star-and-crescent|khanda|place-of-worship"
    r"|(atm|litter-in-bin)-sign|baggage-claim|customs|passport-control|left-luggage|vibration-mode"
    r"|antenna-bars|sparkle|(atom|baby|medical|peace|recycling|transgender|wheelchair)-symbol"
    r"|japanese-symbol-for-beginner|(mens|womens)-room|warning|children-crossing|radioactive"
    r"|biohazard|currency-exchange|(spade|club|heart)-suit|ballot-box-with-check"
)
# Mirrored, they are other concepts; pictures are mirrored at random.
MIRRORED = re.compile(
    r".*-(pointing|tilted)-left|leftwards-.*|left-facing-fist|waning-.*|last-quarter-moon.*"
)
# The fifth set's picture of this name is of something else: the game.
NOT_IN_FIFTH = ("cricket",)
OBJECTS = re.compile(r"(bow-and|heart-with|envelope-with|mobile-phone-with)-arrow")


def read_codes(text: str) -> Codes:
    """``"2764-fe0f"`` → its code points, without those that only ask for a picture."""
    return tuple(c for c in (int(code, 16) for code in text.split("-")) if c != AS_PICTURE)


class IconSet:
    """A package of SVG bodies by name; most list the code points of each name too."""

    def __init__(self, path: str) -> None:
        with tarfile.open(path) as archive:
            content, chars = (
                json.load(archive.extractfile(f"package/{file}.json"))  # type: ignore[arg-type]
                for file in ("icons", "chars")
            )
        self.icons: Dict[str, Dict[str, Any]] = content["icons"]
        self.aliases: Dict[str, Dict[str, Any]] = content.get("aliases", {})
        self.size = (content.get("width", 16), content.get("height", 16))
        self.names = {read_codes(codes): name for codes, name in chars.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.icons or name in self.aliases

    def draw(self, name: str) -> Image.Image:
        """The picture of this name."""
        import resvg_py  # no dependency of the package

        icon = self.icons[self.aliases.get(name, {}).get("parent", name)]
        width, height = icon.get("width", self.size[0]), icon.get("height", self.size[1])
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        )
        png = resvg_py.svg_to_bytes(svg_string=svg, width=RENDERED_SIZE)
        return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def read_pictures(path: str) -> Dict[Codes, Image.Image]:
    """The pictures of a package of ``CODE-POINTS.webp``."""
    pictures: Dict[Codes, Image.Image] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name.endswith(".webp"):
                file = archive.extractfile(member)
                assert file, f"{member.name} is no regular file"
                pictures[read_codes(Path(member.name).stem)] = Image.open(io.BytesIO(file.read()))
    return pictures


def is_object(codes: Codes, name: str) -> bool:
    """Whether a concept shows a thing or a being: no sign, mirror image or given skin tone."""
    parts = any(c in SKIN_TONES or c in REGIONS or c == KEYCAP for c in codes)
    is_sign = SIGNS.fullmatch(name) and not OBJECTS.fullmatch(name)
    return not parts and not is_sign and not MIRRORED.fullmatch(name)


def is_variant(codes: Codes) -> bool:
    """Whether a concept is a man or a woman doing what a neutral person does in another."""
    return len(codes) > 1 and (codes[0] in (MAN, WOMAN) or bool({FEMALE, MALE} & set(codes)))


def choose_classes(
    pictures: Dict[Codes, Image.Image], by_code: List[IconSet], by_name: IconSet
) -> List[Tuple[str, Codes, Optional[str]]]:
    """Name, code points and name in the fifth set of all classes, in the sheet's order."""
    noto = by_code[1].names  # the plainest names
    classes = {}
    for codes in set(pictures).intersection(*(icons.names for icons in by_code)):
        if not is_object(codes, noto[codes]):
            continue
        names = [icons.names[codes] for icons in by_code]
        if len(codes) == 1:  # the fifth set has many older names
            older = unicodedata.name(chr(codes[0]), "").lower()
            names.append(re.sub(r"[^a-z0-9]+", "-", older))
        names = [name for name in names if name in by_name and name not in NOT_IN_FIFTH]
        fifth = names[0] if names else None
        name = noto[codes].replace("-", "_")
        scatter = hashlib.sha256(name.encode()).hexdigest()
        classes[(fifth is None, is_variant(codes), scatter)] = (name, codes, fifth)
    return [classes[key] for key in sorted(classes)][:NUM_CLASSES]


def fit(picture: Image.Image) -> Image.Image:
    """Crop to what is drawn, and scale it to fill a cutout but for a pixel all around."""
    picture = picture.crop(picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
    side, inner = max(picture.size), CUTOUT_SIZE - 2
    width, height = (max(1, round(length * inner / side)) for length in picture.size)
    cutout = Image.new("RGBA", (CUTOUT_SIZE, CUTOUT_SIZE))
    corner = ((CUTOUT_SIZE - width) // 2, (CUTOUT_SIZE - height) // 2)
    cutout.paste(picture.resize((width, height), Image.Resampling.LANCZOS), corner)
    return cutout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pictures", help="lobehub-fluent-emoji-3d-1.1.0.tgz")
    parser.add_argument("sets", nargs=4, help="fluent-emoji-flat, noto, twemoji, emojione")
    args = parser.parse_args()
    *by_code, by_name = map(IconSet, args.sets)
    pictures = read_pictures(args.pictures)
    classes = choose_classes(pictures, by_code, by_name)
    if len(classes) < NUM_CLASSES:
        parser.error(f"{len(classes)} classes have enough drawings, {NUM_CLASSES} are needed")

    rows = -(-NUM_CLASSES // CLASSES_PER_ROW)
    width = CLASSES_PER_ROW * MAX_DRAWINGS * CUTOUT_SIZE
    sheet = Image.new("RGBA", (width, rows * CUTOUT_SIZE))
    counts = {}
    for i, (name, codes, fifth) in enumerate(classes):
        drawings = [pictures[codes].convert("RGBA")]
        drawings += [icons.draw(icons.names[codes]) for icons in by_code]
        drawings += [by_name.draw(fifth)] if fifth else []
        counts[name] = len(drawings)
        for d, drawing in enumerate(drawings):
            left = (i % CLASSES_PER_ROW * MAX_DRAWINGS + d) * CUTOUT_SIZE
            sheet.paste(fit(drawing), (left, i // CLASSES_PER_ROW * CUTOUT_SIZE))
    sheet.save(ASSETS / "cutouts.webp", quality=80, alpha_quality=80, method=6)
    (ASSETS / "cutouts.json").write_text(json.dumps(counts, indent=0) + "\n")
    size = (ASSETS / "cutouts.webp").stat().st_size / 1e6
    print(f"{len(classes)} classes, {sum(counts.values())} drawings, {size:.1f} MB")


if __name__ == "__main__":
    main()
