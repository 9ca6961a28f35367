"""A report's page in a real browser, opened from disk as a user opens it."""

import dataclasses
import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from tde_det.report import Options, build_report

NUM_CLASSES, NUM_IMAGES = 1203, 60
WIDTH, HEIGHT = 120, 90
# What a model with one stage would tell, one of whose classes has pulled the mean direction.
COSINES = {"count": 9, "mean": 0.3, "shares": [0.0] * 20 + [0.5] * 2 + [0.0] * 18}
WHY = {
    "model": {
        "norms": [[1.0] * NUM_CLASSES],
        "cosines": [{"r": COSINES, "c": COSINES, "f": COSINES, "b": {"count": 0}}],
        "raised": [[float(i == 2) for i in range(NUM_CLASSES)]],
        "alphas": [1.5],
        "shares": [0.45 if i == 2 else 0.55 / 1202 for i in range(NUM_CLASSES)],
        "dominant": {"label": 2, "cosine": 0.5, "next_cosine": 0.125},
    }
}


def write_runs(folder, seed=0):
    """Images, annotations and the results of two runs, of which the second finds more rare ones."""
    rng = np.random.default_rng(seed)
    (folder / "pictures").mkdir()
    frequencies = np.array([*"rcf"])[np.arange(NUM_CLASSES) % 3]
    categories = [
        {
            "id": i + 1,
            "name": f"thing_{i}",
            "frequency": str(f),
            "image_count": 5 * 12 ** "rcf".find(f),
        }
        for i, f in enumerate(frequencies)
    ]
    categories[0]["name"] = '<b>odd & "quoted"</b>'
    images, annotations = [], []
    found: list = [[], []]
    for i in range(NUM_IMAGES):
        name = f"picture {i}.jpg"
        color = rng.integers(0, 255, 3, np.uint8)
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), color)).save(folder / "pictures" / name)
        images.append({"id": i + 1, "file_name": name, "width": WIDTH, "height": HEIGHT})
        images[-1]["neg_category_ids"] = [11, 12]
        for _ in range(5):
            c = int(rng.integers(0, 12)) if i else 0  # the first image has the odd class alone
            box = [*rng.uniform(0, 60, 2), *rng.uniform(15, 30, 2)]
            x, y, w, h = box
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotation = {"id": len(annotations) + 1, "image_id": i + 1, "bbox": box}
            annotations.append({**annotation, "category_id": c + 1, "segmentation": [outline]})
            for run, rows in enumerate(found):
                right = frequencies[c] != "r" or run == 1
                class_id = c + 1 if right else 12
                score = float(rng.uniform(0.4, 1))
                row = {"image_id": i + 1, "category_id": class_id, "score": score, "bbox": box}
                rows.append({**row, "segmentation": [outline]})
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(content))
    for name, rows in zip(("a", "b"), found):
        run = folder / name / "inference"
        run.mkdir(parents=True)
        (run / "lvis_instances_results.json").write_text(json.dumps(rows))
        lines = [{"iteration": i, "total_loss": 5.0 / (1 + i), "lr": 0.1} for i in range(0, 90, 20)]
        (run.parent / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    (folder / "a" / "sweep.csv").write_text(
        "adjustments,bbox/AP,segm/AP\ntde alpha=0,10.5,9.0\ntde alpha=1,12.25,\n"
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A browser with the page; it fails if the browser's console has an error at the end."""
    webdriver = pytest.importorskip("selenium.webdriver")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("there is no chromium with its chromedriver")
    pytest.importorskip("plotly")
    folder = tmp_path_factory.mktemp("runs")
    write_runs(folder)
    options = Options(
        annotations=str(folder / "truth.json"), images=str(folder / "pictures"), resamples=20
    )
    runs = [f"first={folder / 'a'}", f"second={folder / 'b'}"]
    path = build_report(runs, str(folder / "report"), options)
    data = folder / "report" / "data" / "report.js"
    data.write_text(data.read_text().replace('"why":{}', f'"why":{json.dumps(WHY)}'))
    chrome = webdriver.ChromeOptions()
    chrome.binary_location = paths[0]
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        chrome.add_argument(flag)
    chrome.add_argument("--window-size=1400,1000")
    chrome.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.chrome.service.Service(paths[1])
    driver = webdriver.Chrome(options=chrome, service=service)
    try:
        driver.get(f"file://{path}")
        yield Page(driver)
        assert not driver.get_log("browser")
        messages = (json.loads(e["message"])["message"] for e in driver.get_log("performance"))
        asked = [
            m["params"]["request"]["url"]
            for m in messages
            if m["method"] == "Network.requestWillBeSent"
        ]
        assert len(asked) > 8
        assert all(url.startswith(("file://", "data:")) for url in asked), asked
    finally:
        driver.quit()


@dataclasses.dataclass
class Page:
    """What the tests do with the page, by CSS selectors."""

    driver: object

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector):
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return self.driver.execute_script(script, selector)

    def click(self, selector, index=0):
        self.driver.execute_script("arguments[0].click()", self.all(selector)[index])

    def choose(self, selector, value):
        """Give an input or a select element a value, as a user's change does."""
        self.driver.execute_script(
            "arguments[0].value = arguments[1];"
            "for (const kind of ['input', 'change'])"
            "  arguments[0].dispatchEvent(new Event(kind, {bubbles: true}))",
            self.all(selector)[0],
            value,
        )

    def wait(self, condition):
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, "waited for 20 s"
            time.sleep(0.05)

    def images(self):
        return int(self.texts("#gallery-count")[0].split()[0].replace(",", ""))


@pytest.fixture(autouse=True)
def _clear(page):
    """Every test begins with all filters off."""
    page.choose("#run-a", "0")
    page.choose("#run-b", "1")
    page.click("#filters [type=reset]")
    assert page.images() == NUM_IMAGES


def test_two_runs_are_compared(page):
    assert page.texts("h1") == ["second against first"]
    assert page.texts("#headline h3") == ["AP of boxes", "AP of masks"]
    rows = page.texts("#headline tbody tr th")
    assert rows == ["first", "second", "difference"] * 2
    rare = page.all("#headline .differences td:nth-child(5)")[0]
    assert rare.text.startswith("+") and "sure-better" in rare.get_attribute("class")
    before = rare.text.splitlines()
    page.choose("#run-a", "1")
    page.choose("#run-b", "0")
    rare = page.all("#headline .differences td:nth-child(5)")[0]
    assert "sure-worse" in rare.get_attribute("class")
    assert rare.text.splitlines()[0] == before[0].replace("+", "−")
    assert page.texts("h1") == ["first against second"]


def test_a_table_sorts(page):
    numbers = "#class-table td:nth-child(4)"

    def column():
        return [float(text.replace(",", "")) for text in page.texts(numbers)]

    page.click("#class-table th", 3)
    assert column() == sorted(column(), reverse=True) and len(set(column())) > 1
    page.click("#class-table th", 3)
    assert column() == sorted(column())
    assert page.texts("#class-table th[aria-sort=ascending]") == ["objects"]
    page.click("#class-table th", 0)
    assert page.texts("#class-table td:first-child")[0] == '<b>odd & "quoted"</b>'


def test_a_class_is_found_among_all(page):
    page.click("#class-table [type=checkbox]")
    assert len(page.texts("#class-table tbody tr")) == NUM_CLASSES
    page.choose("#class-table [type=search]", "thing 1017")
    assert page.texts("#class-table tbody td:first-child") == ["thing 1017"]
    page.choose("#class-table [type=search]", "no such thing")
    assert page.texts("#class-table tbody tr") == []
    page.click("#class-table [type=checkbox]")


def test_a_class_in_a_table_opens_its_pictures(page):
    page.choose("#class-table [type=search]", "odd")
    page.click("#class-table tbody .link")
    assert 0 < page.images() < NUM_IMAGES
    assert page.all("#filter-class")[0].get_attribute("value") == '<b>odd & "quoted"</b>'
    assert page.all(".card")[0].get_attribute("data-image") == "1"
    page.wait(lambda: len(page.all(".card")[0].find_elements("css selector", "svg")) == 3)
    truth, first, second = page.all(".card")[0].find_elements("css selector", "svg")
    assert len(truth.find_elements("css selector", "rect.r")) == 5
    assert not first.find_elements("css selector", "rect.correct")
    assert len(first.find_elements("css selector", "rect.wrong")) == 5
    assert len(second.find_elements("css selector", "rect.correct")) == 5


def test_filters_narrow_the_gallery(page):
    page.choose("#filter-frequency", "r")
    rare = page.images()
    assert 0 < rare < NUM_IMAGES
    page.choose("#filter-error", "0")
    page.choose("#filter-run", "1")
    assert page.images() < rare  # the second run calls rare objects right
    page.click("#filters [type=reset]")
    page.choose("#filter-change", "worse")
    worse = page.images()
    page.choose("#filter-change", "better")
    assert worse < page.images()
    page.choose("#filter-class", "a name that no class has")
    assert page.images() == 0


def test_zoom_and_masks(page):
    page.wait(lambda: len(page.all(".card:first-child svg")) == 3)
    outline = page.all(".card:first-child .outline")[0]
    assert outline.is_displayed()
    page.click("#masks")
    assert not outline.is_displayed()
    page.click("#masks")
    page.click(".panel")
    assert page.all("#zoom")[0].get_attribute("open")
    page.wait(lambda: len(page.all("#zoom svg")) == 3)
    assert "image 1 " in page.texts("#zoom-title")[0]
    page.click("#next")
    assert "image 2 " in page.texts("#zoom-title")[0]
    page.click("#zoom .panel", 1)
    assert [p.is_displayed() for p in page.all("#zoom .panel")] == [False, True, False]
    page.click("#close")


def test_more_pictures_on_demand(page):
    cards = len(page.all(".card"))
    page.click("#more")
    assert cards < len(page.all(".card")) <= NUM_IMAGES


def test_charts_and_tables_are_there(page):
    for section in ("classes", "errors", "training"):
        page.driver.execute_script(f"document.getElementById('{section}').scrollIntoView()")
        page.wait(lambda s=section: page.all(f"#{s} .chart .main-svg"))
    assert "total_loss" in " ".join(page.texts("#curves .legendtext"))
    assert page.texts("#sweeps tbody td:first-child") == ["tde alpha=1", "tde alpha=0"]
    confusions = page.texts("#confusions tbody tr")
    assert "thing 11" in confusions[0]  # what the first run calls all rare objects
    objects, first, second = map(int, page.texts("#renamed td")[:3])
    assert first < second <= objects == 5 * NUM_IMAGES


def test_why(page):
    (warning,) = page.all("#dominant")
    assert "warning" in warning.get_attribute("class")
    assert "thing 2 has 45% of all training objects and a cosine of 0.50" in warning.text
    assert "next class has 0.13" in warning.text and "TDE hurts" in warning.text
    page.driver.execute_script("document.getElementById('why').scrollIntoView()")
    page.wait(lambda: len(page.all("#why .chart .main-svg")) >= 3)
    assert page.texts("#why td:nth-child(3)") == ["0.300", "0.300", "0.300", "–"]
    page.click("#why .warning .link")
    assert page.all("#filter-class")[0].get_attribute("value") == "thing_2"


def test_the_page_is_soon_ready(page):
    """All but the charts is usable this many milliseconds after the page was asked for."""
    assert int(page.all("body")[0].get_attribute("data-ready")) < 5000


def test_fits_a_laptop(page):
    page.driver.set_window_size(1100, 800)
    page.wait(
        lambda: page.driver.execute_script("return document.documentElement.scrollWidth") <= 1100
    )
    page.driver.set_window_size(1400, 1000)
