"""Build the sheet of cutouts that mini_lvis is composed from.

The sheet ships with the package; run this only to make it anew:

    npm pack @lobehub/fluent-emoji-3d@1.1.0
    python tde_det/data/mini_lvis/assets/build_cutouts.py lobehub-fluent-emoji-3d-1.1.0.tgz

The package holds 3,391 RGBA pictures of 256 px. Flags, skin tones, sequences of several code points
and typographic signs are left out; 1,203 of the rest, as many as LVIS v1 has classes, are kept.
"""

import argparse
import hashlib
import io
import json
import re
import tarfile
import unicodedata
from pathlib import Path

from PIL import Image

from tde_det.data.mini_lvis.cutouts import ASSETS, COLUMNS, CUTOUT_SIZE

NUM_CUTOUTS = 1203
# Letters, arrows, clock hands and the like: no objects, and hard to tell apart.
SIGNS = re.compile(
    r"SQUARED|SQUARE$|ARROW|CLOCK FACE|BUTTON|IDEOGRAPH|CIRCLE$|QUESTION|ASTERISK|TRIANGLE"
)


def read_package(path: str) -> dict:
    """Names of the usable pictures of the package's archive → their ``Image``."""
    pictures = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if not member.name.endswith(".webp"):
                continue
            codes = [int(code, 16) for code in Path(member.name).stem.split("-")]
            codes = [code for code in codes if code != 0xFE0F]  # "draw as a picture"
            name = unicodedata.name(chr(codes[0]), "")
            if len(codes) == 1 and name and not SIGNS.search(name):
                file = archive.extractfile(member)
                assert file, f"{member.name} is no regular file"
                key = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
                pictures[key] = Image.open(io.BytesIO(file.read())).convert("RGBA")
    return pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("package", help="lobehub-fluent-emoji-3d-1.1.0.tgz")
    args = parser.parse_args()
    pictures = read_package(args.package)
    if len(pictures) < NUM_CUTOUTS:
        parser.error(f"{args.package} has {len(pictures)} usable pictures, {NUM_CUTOUTS} needed")
    # Alike pictures have neighbouring code points; any order that scatters them would do.
    names = sorted(pictures, key=lambda name: hashlib.sha256(name.encode()).digest())[:NUM_CUTOUTS]

    rows = -(-NUM_CUTOUTS // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CUTOUT_SIZE, rows * CUTOUT_SIZE))
    for i, name in enumerate(names):
        cutout = pictures[name].resize((CUTOUT_SIZE, CUTOUT_SIZE), Image.Resampling.LANCZOS)
        sheet.paste(cutout, (i % COLUMNS * CUTOUT_SIZE, i // COLUMNS * CUTOUT_SIZE))
    sheet.save(ASSETS / "cutouts.webp", quality=80, method=6)
    (ASSETS / "cutouts.json").write_text(json.dumps(names, indent=0) + "\n")
    print(f"{len(names)} cutouts, {(ASSETS / 'cutouts.webp').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
