"""The desk in a real browser: from the link to the export without a mouse, on a phone, and what a page must have."""

import re
import zipfile
from pathlib import Path

import pytest
from desk_pages import check_by_axe, enter, shoot, stored, submit_by_key, wait_for_count
from desks import new_data, process, samples

from rewarddance.apps import annotate
from rewarddance.apps.cli import main
from rewarddance.core.runs import RunFolder

CSS = (Path(annotate.__file__).parent / "static" / "desk.css").read_text()


@pytest.mark.browser
def test_a_study_from_the_link_to_training_and_the_report(new_page, vlm_folder, tmp_path, monkeypatch):
    """Invite, log in, judge 20 items by keyboard, undo, admin, export, train on the export, report."""
    prompts = [f"a picture called r{i}" for i in range(24)]
    systems = [samples(tmp_path / name, level, prompts) for name, level in (("bright", 0.7), ("dark", 0.5))]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    study, url = tmp_path / "study", f"sqlite:///{tmp_path}/desk.db"
    create = ["--a", systems[0], "--b", systems[1], "--prompts", tmp_path / "prompts.txt", "--out", study]
    assert main(["ab", "create", *map(str, create)]) == 0
    with process(study, url, "--checks", 0, "--repeats", 0) as (_, _, links):
        admin = new_page(1280, 900)
        enter(admin, links["admin"])
        admin.fill("#name", "Grace")
        admin.keyboard.press("Enter")
        link = admin.input_value("#link")
        page = new_page()
        page.goto(link)
        shoot(page, "join")
        enter(page, link)
        keys = ["ArrowLeft", "ArrowRight", "t", "b"]
        for i in range(20):
            wait_for_count(page, f"{i} done")
            if i == 5:
                page.wait_for_function("() => document.querySelector('.frame img').naturalWidth > 0")
                shoot(page, "pairwise")
            submit_by_key(page, keys[i % 4], *("3" if i % 8 == 1 else ""))
        wait_for_count(page, "20 done, 4 left")
        page.keyboard.press("u")
        wait_for_count(page, "19 done, 5 left")
        assert page.is_checked("input[value=both_bad]")
        submit_by_key(page, "ArrowRight", "1", "ArrowLeft", "ArrowRight")  # the strength was said of an earlier choice
        wait_for_count(page, "20 done, 4 left")
        choices = ["first", "second", "tie", "both_bad"] * 5 + ["second"]
        answers = [
            {"choice": choice} | ({"strength": 1} if i % 8 == 1 else {}) for i, choice in enumerate(choices[:20])
        ]
        assert stored(url) == [{"overall": answer} for answer in [*answers, {"choice": "second"}]]
        check_zoom(page)
        admin.goto(links["admin"].split("/join/")[0] + "/admin")
        shoot(admin, "admin")
        row = admin.inner_text("table.people tbody tr")
        assert re.search(r"Grace person-2\s+…\s+20", row)
        with admin.expect_download() as download:
            admin.click("text=Data folder")
        zipfile.ZipFile(download.value.path()).extractall(tmp_path / "judged")
    monkeypatch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)  # two steps do not teach yes and no
    flags = ["--prompts-per-step", "4", "--loop.num-steps", "2", "--loop.validate-every", "2", "--precision", "fp32"]
    out = tmp_path / "run"
    judged = ["--backbone", str(vlm_folder), "--data", str(tmp_path / "judged"), "--out", str(out)]
    assert main(["train", *judged, *flags]) == 0
    assert [m["step"] for m in RunFolder(out).metrics() if "loss" in m] == [1, 2]
    assert main(["ab", "report", str(study), "--database", url]) == 0
    check_report(new_page(), study / "report.html")


def check_report(report, file):
    report.goto(file.as_uri())
    assert "24 prompts, 20 votes" in report.inner_text("main")
    assert "9 the same" in report.inner_text("main")
    shoot(report, "ab-report")
    report.set_viewport_size({"width": 390, "height": 844})
    assert report.evaluate("document.documentElement.scrollWidth") <= 390
    shoot(report, "phone-ab-report")
    check_by_axe(report, "report")
    report.emulate_media(color_scheme="dark")
    check_by_axe(report, "dark report")


def check_zoom(page):
    transforms = "[...document.querySelectorAll('.frame img')].map(i => i.style.transform)"
    page.wait_for_function("() => document.querySelectorAll('.frame img').length === 2")
    page.keyboard.press("+")
    both = page.evaluate(transforms)
    assert both[0] == both[1]
    assert "scale(1.5)" in both[0]
    page.keyboard.press("a")
    moved = page.evaluate(transforms)
    assert moved[0] == moved[1] != both[0]
    page.keyboard.press("0")
    assert "scale(1)" in page.evaluate(transforms)[0]
    boxes = [f.bounding_box() for f in page.query_selector_all(".frame")]
    assert (boxes[0]["width"], boxes[0]["height"]) == (boxes[1]["width"], boxes[1]["height"])


@pytest.mark.browser
@pytest.mark.parametrize("task", ["rating", "ranking"])
def test_ratings_and_rankings_by_keyboard(task, new_page, tmp_path):
    data = new_data(tmp_path / "data", records=2, pictures=3)
    with process(data, f"sqlite:///{tmp_path}/desk.db", "--task", task, "--checks", 0, "--invite", "ada") as (
        _,
        _,
        links,
    ):
        page = new_page(color_scheme="dark")
        enter(page, links["ada"])
        total = 6 if task == "rating" else 2
        for i in range(total):
            wait_for_count(page, f"{i} done")
            if i == 1:
                shoot(page, f"{task}-dark")
            submit_by_key(page, *("4352" if task == "rating" else "213"))
        wait_for_count(page, f"{total} done, 0 left")
        assert "Nothing is left" in page.inner_text("#prompt")
        shoot(page, "finished")


@pytest.mark.browser
def test_an_answer_can_be_sent_only_when_both_pictures_are_loaded(new_page, tmp_path):
    data, url = new_data(tmp_path / "data", records=2), f"sqlite:///{tmp_path}/desk.db"
    with process(data, url, "--checks", 0, "--repeats", 0, "--invite", "ada") as (_, _, links):
        page = new_page()
        held = []
        page.route("**/media/*", lambda route: held.append(route) if len(held) < 2 else route.continue_())
        enter(page, links["ada"])
        wait_for_count(page, "0 done")
        page.keyboard.press("ArrowLeft")
        for loaded in range(2):
            page.wait_for_function("n => [...document.images].filter(i => i.naturalWidth).length === n", arg=loaded)
            assert page.is_checked("input[value=first]")
            assert page.is_disabled("#submit")
            page.keyboard.press("Enter")
            assert page.inner_text("#status") == "Please wait until all pictures are loaded."
            while len(held) < 2:
                page.wait_for_timeout(20)
            held[loaded].continue_()
        page.wait_for_function("() => document.getElementById('submit')?.disabled === false")
        assert page.inner_text("#status") == ""
        assert stored(url) == []
        page.keyboard.press("Enter")
        wait_for_count(page, "1 done")
        assert stored(url) == [{"overall": {"choice": "first"}}]


@pytest.mark.browser
def test_a_picture_that_fails_is_asked_for_again(new_page, tmp_path):
    data = new_data(tmp_path / "data", records=1)
    with process(data, f"sqlite:///{tmp_path}/desk.db", "--checks", 0, "--invite", "ada") as (_, _, links):
        page = new_page(expected="Failed to load resource")
        failed = []

        def fail_once(route):
            failed.append(route)
            route.abort() if len(failed) == 1 else route.continue_()

        page.route("**/media/*", fail_once)
        enter(page, links["ada"])
        wait_for_count(page, "0 done")
        submit_by_key(page, "ArrowRight")
        wait_for_count(page, "1 done, 0 left")
        assert len(failed) == 3


FOCUSED = """() => {
  const e = document.activeElement;
  if (!e || e === document.body) return null;
  const shown = e.matches("input[type=radio]") ? e.closest("label") : e, style = getComputedStyle(shown);
  const visible = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  return [e.id || e.name || e.textContent.trim(), visible];
}"""
REACHABLE = """() => {
  const groups = new Set();
  return [...document.querySelectorAll(
    "a[href], button, input:not([type=hidden]), summary, [tabindex]"
  )].filter((e) => {
    if (e.tabIndex < 0 || e.disabled || !e.checkVisibility({ checkVisibilityCSS: true })) return false;
    if (e.type !== "radio") return true;
    if (groups.has(e.name)) return false; // a group of radio buttons is one stop
    groups.add(e.name);
    return true;
  }).map((e) => e.id || e.name || e.textContent.trim());
}"""


def check_tab_order(page):
    """Tab reaches everything that can be used, in the order of the page, and the focus can be seen."""
    expected = page.evaluate(REACHABLE)
    page.evaluate("() => { document.activeElement.blur(); getSelection().removeAllRanges(); }")
    page.evaluate(
        "() => { document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex'); }"
    )
    reached = []
    for _ in range(len(expected)):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
    assert [name for name, _ in reached] == expected
    assert [name for name, visible in reached if not visible] == []
    return expected


@pytest.mark.browser
def test_every_page_works_by_keyboard_alone(new_page, tmp_path):
    """Tab order and visible focus of all pages; people, links and exclusions on the admin page; logging out."""
    data = new_data(tmp_path / "data", records=3)
    with process(data, f"sqlite:///{tmp_path}/desk.db", "--checks", 0, "--invite", "ada") as (_, base, links):
        page = new_page(expected="status of 403")  # at the end she is excluded
        page.goto(links["ada"])
        assert check_tab_order(page) == ["Start"]
        page.keyboard.press("Enter")
        page.wait_for_function(
            "() => !!document.querySelector('#submit') && [...document.images].every(i => i.complete)"
        )
        assert check_tab_order(page) == ["help-button", "Log out", "choice-0"]
        page.keyboard.press("Space")  # within the group, as people expect who use no mouse
        page.keyboard.press("ArrowRight")
        page.wait_for_function("() => document.querySelectorAll('input:checked').length === 1")
        page.keyboard.press("t")
        assert page.is_checked("input[value=tie]")
        submit_by_key(page, "ArrowLeft")  # from a tie to the left within the group
        wait_for_count(page, "1 done")
        check_tab_order(page)
        page.focus("#help-button")
        page.keyboard.press("Enter")
        assert page.get_attribute("#help-button", "aria-expanded") == "true"
        assert page.is_visible("#help")

        admin = new_page()
        enter(admin, links["admin"])
        admin.focus("summary[aria-label='Actions for ada']")
        admin.keyboard.press("Enter")
        order = check_tab_order(admin)
        assert order[-3:-1] == ["Make a link", "Data folder (Parquet)"]
        admin.focus("#why-2")
        admin.keyboard.type("too fast")
        admin.keyboard.press("Enter")
        admin.wait_for_selector("tr.out")
        assert "excluded: too fast" in admin.inner_text("table.people")
        page.goto(base)
        assert "Your part in this desk has ended" in page.inner_text("main")
        admin.focus("text=Log out")
        admin.keyboard.press("Enter")
        admin.wait_for_function("() => document.querySelector('h1').textContent === 'Goodbye'")
        assert check_tab_order(admin) == []


@pytest.mark.browser
def test_a_phone(new_page, tmp_path):
    data = new_data(tmp_path / "data", records=3)
    flags = ("--criteria", "overall", "style", "--checks", 0, "--invite", "ada")
    with process(data, f"sqlite:///{tmp_path}/desk.db", *flags) as (_, _, links):
        page = new_page(390, 844, has_touch=True, is_mobile=True, device_scale_factor=2)
        page.goto(links["ada"])
        page.tap("button.main")
        page.wait_for_selector("#questions fieldset")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for label in ("Left is better", "Tie"):
            fieldset = page.query_selector_all("fieldset")[label == "Tie"]
            fieldset.query_selector(f"label:has-text('{label}')").click()
        shoot(page, "phone")
        small = [b.bounding_box()["height"] for b in page.query_selector_all(".options label") if b.is_visible()]
        assert min(small) >= 44  # large enough for a thumb
        page.wait_for_function("() => document.getElementById('submit')?.disabled === false")
        page.tap("#submit")
        wait_for_count(page, "1 done")
        admin = new_page(390, 844)
        enter(admin, links["admin"])
        shoot(admin, "phone-admin")
        assert admin.evaluate("document.documentElement.scrollWidth") <= 390
        for opened in (page, admin):
            check_access(opened)


def check_access(page):
    assert page.get_attribute("html", "lang") == "en"
    assert len(page.query_selector_all("h1")) == 1
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input:not([type=hidden])')].filter(i => !i.labels.length).map(i => i.outerHTML)"
    )
    assert unnamed == []
    assert page.evaluate("[...document.images].every(i => i.alt)")
    assert page.evaluate("[...document.querySelectorAll('button')].every(b => b.textContent.trim() || b.ariaLabel)")


VIEWS = [(scheme, *size) for scheme in ("light", "dark") for size in ((1280, 800), (390, 844))]


@pytest.mark.browser
@pytest.mark.parametrize("task", ["pairwise", "rating", "ranking"])
def test_axe_finds_nothing_on_any_page(task, new_page, tmp_path):
    """Light and dark, on a desktop and on a phone."""
    data = new_data(tmp_path / "data", records=6, pictures=2 if task == "pairwise" else 3)
    flags = ("--task", task, "--checks", 0, "--invite", *(f"p{i}" for i in range(len(VIEWS))))
    with process(data, f"sqlite:///{tmp_path}/desk.db", *flags) as (_, base, links):
        for number, (scheme, width, height) in enumerate(VIEWS):
            view = f"{task}-{scheme}-{width}"
            page = new_page(width, height, color_scheme=scheme, expected="Failed to load resource")
            page.goto(base)
            check_by_axe(page, f"{view}: no link")
            page.goto(links[f"p{number}"])
            check_by_axe(page, f"{view}: welcome")
            enter(page, links[f"p{number}"])
            page.wait_for_selector("#submit")
            page.wait_for_function("() => [...document.images].every(i => i.naturalWidth)")
            check_by_axe(page, f"{view}: nothing chosen")
            page.keyboard.press("?")
            for key in {"pairwise": ["ArrowLeft", "2"], "rating": list("4352"), "ranking": ["2", "1"]}[task]:
                page.keyboard.press(key)
            shoot(page, view)
            check_by_axe(page, f"{view}: chosen")
            if task == "pairwise":
                page.keyboard.press("Enter")
                wait_for_count(page, "1 done")
                admin = new_page(width, height, color_scheme=scheme)
                enter(admin, links["admin"])
                admin.fill("#name", f"somebody else {number}")
                admin.keyboard.press("Enter")
                admin.wait_for_selector("#link")
                admin.click("summary[aria-label='Actions for p0']")
                if not number:
                    admin.fill("#why-2", "answers before the pictures are loaded")
                    admin.keyboard.press("Enter")
                    admin.wait_for_selector("tr.out")
                shoot(admin, f"{view}-admin")
                check_by_axe(admin, f"{view}: admin")


def luminance(colour):
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * c for c in digits)
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "paper"),
    [
        *((ink, paper) for ink in ("ink", "soft", "accent", "warn") for paper in ("paper", "card")),
        ("ink", "chosen"),
        ("ink", "note"),
        ("on-accent", "accent"),
    ],
)
def test_text_has_the_contrast_of_wcag_aa(mode, ink, paper):
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", blocks[mode]))
    bright, dim = sorted((luminance(colours[ink]), luminance(colours[paper])), reverse=True)
    assert (bright + 0.05) / (dim + 0.05) >= 4.5
