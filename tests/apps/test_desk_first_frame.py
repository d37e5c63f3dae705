"""Image-to-video at the desk: people see the first frame beside the prompt, blind, and exports keep it."""

import io
import json

import numpy as np
import pytest
from desk_pages import check_by_axe, enter, shoot, submit_by_key, wait_for_count
from desks import clip, export, new_clip_data, picture, process
from PIL import Image
from sqlalchemy import delete

from rewarddance.apps.annotate.models import Shown
from rewarddance.apps.cli import main
from rewarddance.core.clips import read_clip
from rewarddance.core.errors import InputError
from rewarddance.core.runs import RunFolder
from rewarddance.data.parquet import RecordTable, row_of
from rewarddance.data.schema import hash_of, row_of_votes
from rewarddance.data.shards import write_rows
from rewarddance.data.votes import MediaRef, VotedRecord
from rewarddance.world.build.clip_preferences import ClipPreferencesConfig, clip_records


def frame_of(place=0, size=(48, 64)):
    """The first frame of `clip(place)`, with a secret in its metadata."""
    pixels = np.full((*size, 3), 40 + 60 * place, np.uint8)
    pixels[8:24, :16] = (220, 40, 60)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[271] = "secret-model-b"
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.fixture
def begun(new_desk, tmp_path):
    """A desk of image-to-video: two records of three clips."""

    def make(given=None, **settings):
        clips = [(clip(0), ".mp4"), (clip(1), ".mp4"), (clip(2), ".mp4")]
        data = new_clip_data(tmp_path / "data", 2, clips, given or (frame_of(),))
        return new_desk(data=data, judgements=1, **settings)

    return make


@pytest.mark.parametrize(("task", "num", "items"), [("pairwise", 2, 6), ("rating", 1, 6), ("ranking", 3, 2)])
def test_people_see_the_first_frame_as_large_as_the_clips(begun, task, num, items):
    desk = begun(task=task, criteria=("overall",))
    ada, ben = desk.person("ada"), desk.person("ben")
    answer = {"pairwise": {"choice": "tie"}, "rating": {"rating": 3}, "ranking": {"ranks": [1, 2, 3]}}[task]
    files, tokens = set(), []
    for _ in range(items):
        work = ada.next()
        assert "secret" not in json.dumps(work)
        item = work["item"]
        assert (len(item["media"]), len(item["given"])) == (num, 1)
        tokens += [*item["media"], *item["given"]]
        assert ada.next()["item"] == item  # a reload shows the same addresses
        given = ada.http.get(f"/media/{item['given'][0]}")
        assert (given.status_code, given.headers["content-type"]) == (200, "image/png")
        assert b"secret" not in given.content + str(given.headers).encode()
        image = Image.open(io.BytesIO(given.content))
        first = read_clip(io.BytesIO(ada.seen(item)[0]), "clip")[0][0]
        assert image.size == (first.shape[1], first.shape[0]) == (256, 192)
        assert tuple(image.info) == ()
        assert np.asarray(image)[64, 32] == pytest.approx([220, 40, 60], abs=1)
        assert ben.http.get(f"/media/{item['given'][0]}").status_code == 404
        files.add(given.content)
        assert ada.say(item, {"overall": answer}).status_code == 200
    assert ada.next()["item"] is None
    assert len(set(tokens)) == len(tokens) == items * (num + 1)  # addresses tell nothing
    assert len(files) == 1


def test_an_undone_item_and_one_of_an_earlier_version_show_the_first_frame(begun):
    desk = begun()
    ada = desk.person()
    item = ada.next()["item"]
    with desk.database.write() as session:  # as an earlier version gave it out
        session.execute(delete(Shown).where(Shown.token.in_(item["given"])))
    again = ada.next()["item"]
    assert again["media"] == item["media"]
    assert len(again["given"]) == 1
    assert ada.http.get(f"/media/{again['given'][0]}").status_code == 200
    ada.judge(again, lambda pictures: {"choice": "tie"})
    assert ada.post("/api/undo").json()["item"]["given"] == again["given"]


def test_a_first_frame_that_is_also_a_candidate_has_an_address_of_its_own(new_desk, tmp_path):
    """Also for pictures. Given pictures of another shape get bars, as candidates do."""
    same, wide = picture(0.3, side=32), frame_of(size=(24, 48))
    files = [same, picture(0.6, side=48)]
    media = [MediaRef(sha256=hash_of(f), data=f) for f in files]
    media += [MediaRef(sha256=hash_of(f), role="condition", data=f) for f in (same, wide)]
    write_rows([row_of_votes(VotedRecord("r0", "an edit", tuple(media)))], tmp_path / "data" / "train.parquet")
    ada = new_desk(data=tmp_path / "data").person()
    item = ada.next()["item"]
    assert len({*item["media"], *item["given"]}) == 4
    first, second = (Image.open(io.BytesIO(ada.http.get(f"/media/{t}").content)) for t in item["given"])
    assert first.size == second.size == (48, 48)
    assert (np.asarray(second)[:12] == 0).all()
    assert (np.asarray(second)[13] > 0).any()


def test_records_without_a_given_picture_show_none(new_desk):
    assert new_desk().person().next()["item"]["given"] == []


def test_a_damaged_first_frame_is_one_clear_line_at_the_start(begun):
    with pytest.raises(InputError, match=r"record r0: secret/given-0.png: not a picture, or damaged"):
        begun(given=(b"no picture",))


def test_an_export_keeps_the_first_frame_and_a_judge_trains_on_it(url, new_desk, vlm_folder, tmp_path, monkeypatch):
    config = ClipPreferencesConfig(num_prompts=4, clips=2, task="i2v", votes=1)
    made = list(clip_records(config))
    write_rows(map(row_of, made), tmp_path / "data" / "train.parquet")
    desk = new_desk(data=tmp_path / "data", judgements=1)
    assert desk.person().work(lambda clips: {"choice": "first"}) == 4
    out = tmp_path / "judged"
    assert main(["annotate", "export", "--database", url, "--out", str(out)]) == 0
    back = {record.record_id: record for record in RecordTable.open(out / "train.parquet")}
    assert sorted(back) == sorted(record.record_id for record in made)
    for record in made:
        assert (back[record.record_id].condition.to_numpy() == record.condition.to_numpy()).all()
        assert len(back[record.record_id].media) == 2
    monkeypatch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)  # two steps do not teach yes and no
    flags = ["--prompts-per-step", "2", "--loop.num-steps", "2", "--loop.validate-every", "2", "--precision", "fp32"]
    trained = ["--backbone", str(vlm_folder), "--data", str(out), "--out", str(tmp_path / "run"), *flags]
    assert main(["train", *trained, "--paradigm", "generative_pairwise"]) == 0
    assert [m["step"] for m in RunFolder(tmp_path / "run").metrics() if "loss" in m] == [1, 2]


def test_every_format_of_an_export_that_holds_conditions_has_the_first_frame(begun, url, tmp_path):
    desk = begun()
    desk.person().work(lambda clips: {"choice": "first"}, most=1)
    (record,) = export(desk)
    assert [(m.role, m.data) for m in record.conditions] == [("condition", frame_of())]
    out = tmp_path / "own"
    assert main(["annotate", "export", "--database", url, "--format", "jsonl", "--out", str(out)]) == 0
    (line,) = (json.loads(row) for file in out.glob("*.jsonl") for row in file.read_text().splitlines())
    assert line["media"][-1]["role"] == "condition"


SIZES = "[...document.querySelectorAll('.frame')].map(f => [f.clientWidth, f.clientHeight])"
LOADED = "() => document.querySelector('#given img')?.naturalWidth > 0"


@pytest.mark.browser
@pytest.mark.parametrize(("task", "keys"), [("pairwise", ["ArrowLeft"]), ("rating", "4352"), ("ranking", "213")])
def test_the_first_frame_stands_beside_the_clips_on_desktop_and_phone(new_page, tmp_path, task, keys):
    clips = [(clip(0), ".mp4"), (clip(1), ".mp4"), (clip(2), ".mp4")]
    data = new_clip_data(tmp_path / "data", 1, clips, (frame_of(),))
    flags = ("--task", task, "--checks", 0, "--repeats", 0, "--invite", "ada")
    with process(data, f"sqlite:///{tmp_path}/desk.db", *flags) as (_, _, links):
        page = new_page()
        held = []
        page.route("**/media/*", lambda route: held.append(route) if not held else route.continue_())
        enter(page, links["ada"])
        wait_for_count(page, "0 done")
        assert page.get_attribute("#given img", "alt").startswith("First frame: ")
        assert page.inner_text("#given figcaption").startswith("First frame: ")
        for key in keys:
            page.keyboard.press(key)
        while not held:
            page.wait_for_timeout(20)
        page.wait_for_timeout(300)
        assert page.is_disabled("#submit")  # the first request, for the first frame, is not answered
        held[0].continue_()
        page.wait_for_function(LOADED)
        page.wait_for_function("() => document.getElementById('submit')?.disabled === false")
        for name, width, height in (("desktop", 1280, 800), ("phone", 390, 844)):
            page.set_viewport_size({"width": width, "height": height})
            sizes = page.evaluate(SIZES)
            assert sizes == [sizes[0]] * len(sizes)  # the same scale
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            shoot(page, f"first-frame-{task}-{name}")
        page.keyboard.press("+")
        page.keyboard.press("s")
        page.keyboard.press("w")
        shifts = page.evaluate("[...document.querySelectorAll('.frame > *')].map(n => n.style.transform)")
        assert shifts == [shifts[0]] * len(sizes)
        check_by_axe(page, "first frame")
        submit_by_key(page)
        wait_for_count(page, "1 done")
